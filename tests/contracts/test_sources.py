"""The contract of every manifest format in the registry, and a format that only a registry entry adds."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import deltalake
import fsspec
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from pipeline.__main__ import main
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import ManifestFile, list_manifest_files
from pipeline.manifest.sources.base import Source, Span, TablePartSource, split_rows
from pipeline.manifest.tables import find_table, load_source_class
from pipeline.registry import SOURCES
from tests.fake_hub import FakeHub, serve_hub
from tests.workspace import JobWorkspace

ROWS = [{"path": f"{number:02}.png", "uri": f"pics/{number:02}.png"} for number in range(23)]


def write_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "m.parquet", row_group_size=10)
    return folder / "m.parquet"


def write_jsonl(folder: Path) -> Path:
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "m.jsonl"


def write_csv(folder: Path) -> Path:
    with open(folder / "m.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / "m.csv"


def write_webdataset(folder: Path) -> Path:
    with tarfile.open(folder / "m.tar", "w") as archive:
        for row in ROWS:
            for name, content in ((row["path"], b"\x89PNG"), (row["path"].replace("png", "json"), b"{}")):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    return folder / "m.tar"


def write_folder(folder: Path) -> Path:
    (folder / "media").mkdir()
    for row in ROWS:
        (folder / "media" / row["path"]).write_bytes(b"\x89PNG")
    return folder / "media"


def write_linked_folder(folder: Path) -> Path:
    (folder / "linked").mkdir()
    (folder / "linked/pics").symlink_to(write_folder(folder))
    return folder / "linked"


def write_delta(folder: Path) -> Path:
    deltalake.write_deltalake(folder / "delta", pa.Table.from_pylist(ROWS))
    return folder / "delta"


def write_iceberg(folder: Path) -> Path:
    catalog = SqlCatalog("test", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    catalog.create_namespace("in")
    rows = pa.Table.from_pylist(ROWS)
    catalog.create_table("in.iceberg", rows.schema).append(rows)
    return folder / "in/iceberg"


def write_lance(folder: Path) -> Path:
    lance.write_dataset(pa.Table.from_pylist(ROWS), folder / "m.lance")
    return folder / "m.lance"


WRITERS: dict[str, Callable[[Path], Path]] = {  # write ROWS in each format
    "parquet": write_parquet,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "webdataset": write_webdataset,
    "delta": write_delta,
    "iceberg": write_iceberg,
    "lance": write_lance,
    "folder": write_folder,
    "linked_folder": write_linked_folder,
}


PART_KINDS = [kind for kind in SOURCES if issubclass(load_source_class(kind), TablePartSource)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve_hub(monkeypatch) as fake_hub:
        yield fake_hub


@pytest.fixture(params=SOURCES)
def file(request: pytest.FixtureRequest, tmp_path: Path, hub: FakeHub) -> ManifestFile:
    if request.param == "hub_dataset":
        content = write_parquet(tmp_path).read_bytes()
        commit = hub.commit("acme/rows", **{"train.parquet": content})
        manifest, url = "hf://datasets/acme/rows#split=train", f"hf://datasets/acme/rows@{commit}"
    else:
        manifest = str(WRITERS[request.param](tmp_path))
        url = f"file://{manifest}"
    job = Job.model_validate(
        {
            "name": "s",
            "input": {"manifest": manifest, "follow_links": request.param == "linked_folder"},
            "model": {"weights": "builtin:tiny"},
            "output": {"path": str(tmp_path / "out")},
        }
    )
    (found,) = list_manifest_files(job)
    assert found == ManifestFile(url, request.param, part=found.part)
    assert bool(found.part) == issubclass(found.source_class, TablePartSource)
    return found


def read_all(source: Source, rows_per_span: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    return [row for span in source.list_spans(rows_per_span) for row in source.read_span(span, columns).to_pylist()]


def test_every_ending_belongs_to_one_source_and_the_others_read_folders() -> None:
    endings = [ending for kind in SOURCES for ending in load_source_class(kind).file_endings]
    assert all(ending.startswith(".") and ending == ending.lower() for ending in endings)
    assert len(endings) == len(set(endings))
    of_folders = [kind for kind in SOURCES if kind not in PART_KINDS and not load_source_class(kind).file_endings]
    assert of_folders == ["folder", "linked_folder"]


def test_only_the_last_span_may_be_short(file: ManifestFile) -> None:
    source = file.open_source()
    assert [source.read_span(span).num_rows for span in source.list_spans(5)] == [5, 5, 5, 5, 3]


def test_spans_hold_all_rows_in_order_however_long_they_are(file: ManifestFile) -> None:
    names = [row["path"].removesuffix(".png") for row in ROWS]
    for rows_per_span in (1, 5, 23, 100):
        rows = read_all(file.open_source(), rows_per_span)
        assert [row["path"].rpartition("/")[2].removesuffix(".png") for row in rows] == names


def test_spans_that_follow_each_other_are_a_span_together(file: ManifestFile) -> None:
    """A chunk of several slices is read whole by retries and exports."""
    first, second, third, *_ = file.open_source().list_spans(5)
    assert file.open_source().read_span((second[0], third[1])).to_pylist() == read_all(file.open_source(), 5)[5:15]
    assert file.open_source().read_span((first[0], second[1])).num_rows == 10


def test_the_number_of_rows_is_estimated(file: ManifestFile) -> None:
    assert len(ROWS) / 2 <= file.open_source().estimate_rows() <= 2 * len(ROWS)


def test_another_process_may_read_any_span_alone(file: ManifestFile) -> None:
    spans = list(file.open_source().list_spans(4))
    expected = read_all(file.open_source(), 4)
    for number, span in reversed(list(enumerate(spans))):
        assert file.open_source().read_span(span).to_pylist() == expected[4 * number :][:4]


def test_one_source_may_read_spans_in_any_order(file: ManifestFile) -> None:
    source = file.open_source()
    spans = list(source.list_spans(6))
    expected = [source.read_span(span).to_pylist() for span in spans]
    assert [source.read_span(span).to_pylist() for span in reversed(spans)] == expected[::-1]


def test_a_span_has_the_columns_asked_for_with_the_types_of_the_schema(file: ManifestFile) -> None:
    source = file.open_source()
    schema, span = source.read_schema(), next(source.list_spans(9))
    assert source.read_span(span).schema.equals(schema)
    first, *_, last = schema.names
    for columns in ([last], [last, first]):
        assert source.read_span(span, columns).schema.equals(pa.schema([schema.field(name) for name in columns]))


def test_default_columns_exist(file: ManifestFile) -> None:
    defaults = {*file.source_class.default_media, file.source_class.default_id} - {None}
    assert defaults <= set(file.open_source().read_schema().names)


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in PART_KINDS])
def test_a_file_that_is_not_readable_is_named(kind: str, tmp_path: Path) -> None:
    endings = load_source_class(kind).file_endings
    path = tmp_path / f"bad{endings[0] if endings else ''}"
    if endings:
        path.write_bytes(b"\xff\xfe\n\n")
    else:
        path.mkdir()
    with pytest.raises(JobError, match=path.name):
        read_all(load_source_class(kind)(str(path)), 10)


@pytest.mark.parametrize("kind", [kind for kind in PART_KINDS if kind in WRITERS])
def test_a_table_that_is_not_readable_is_named(kind: str, tmp_path: Path) -> None:
    table = WRITERS[kind](tmp_path)
    for log in ("_delta_log", "_versions", "metadata"):
        for file in (table / log).glob("*"):
            file.write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match=f"{table.name}: is not .* table that can be read"):
        find_table(fsspec.filesystem("file"), str(table), {})


@pytest.mark.parametrize("kind", [kind for kind in PART_KINDS if kind in WRITERS])
@pytest.mark.process
def test_the_extra_of_a_table_is_named_where_it_lacks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = WRITERS[kind](tmp_path)
    for module in ("deltalake", "pyiceberg", "lance"):
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(JobError, match=r"pip install 'vlbatch\[(deltalake|pyiceberg|pylance)\]'"):
        find_table(fsspec.filesystem("file"), str(table), {})


class TextSource(Source):
    """A text file with one URI in each line."""

    file_endings = (".txt",)
    default_media, default_id = ("image",), "number"

    def read_schema(self) -> pa.Schema:
        return pa.schema([("number", pa.int64()), ("image", pa.string())])

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        return split_rows(len(self.read_lines()), rows_per_span)

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        rows = [{"number": number, "image": line} for number, line in enumerate(self.read_lines())]
        table = pa.Table.from_pylist(rows[slice(*span)], schema=self.read_schema())
        return table if columns is None else table.select(columns)

    def read_lines(self) -> list[str]:
        return Path(self.url.removeprefix("file://")).read_text().splitlines()


@pytest.mark.process
def test_a_registry_entry_is_enough_to_add_a_source(
    workspace: JobWorkspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SOURCES, "text", f"{__name__}:TextSource")
    images = [row["image"] for row in workspace.draw_images(10)]
    (workspace.folder / "images.txt").write_text("\n".join(images))
    manifest = {"manifest": str(workspace.folder), "media": [], "id": None, "keep": ["number"]}
    job_file = str(workspace.write_job_file(input=manifest))
    assert main(["check", job_file]) == 0
    assert main(["plan", job_file]) == 0
    assert "10" in capsys.readouterr().out
    assert main(["run", job_file, "--local"]) == 0
    answers = workspace.read_answers()
    assert {row["id"]: (row["number"], row["text"]) for row in answers} == {
        str(number): (number, f"seen {number}") for number in range(10)
    }
    assert len(workspace.list_parts()) == 3, "chunks of 4 rows"
