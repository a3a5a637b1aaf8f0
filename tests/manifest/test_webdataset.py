"""WebDataset tars as manifests: what is a row, what is read of a tar, and which rows are the same."""

from __future__ import annotations

import io
import json
import tarfile

import fsspec
import pytest
import webdataset
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import ManifestFile, list_manifest_files
from pipeline.manifest.sources.webdataset import WebDatasetSource

LONG_KEY = "a/" + "long-" * 30 + "name"  # needs a header of its own


def write_tar(path, members, *, ended=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - without its end, it is not closed
    for name, content in members:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        archive.addfile(header, io.BytesIO(content))
    if ended:
        archive.close()
    else:
        archive.fileobj.close()
    return str(path)


def draw_png(shade):
    sink = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 90, 160)).save(sink, "PNG")
    return sink.getvalue()


def read_rows(source, rows_per_span=2, columns=None):
    return [row for span in source.list_spans(rows_per_span) for row in source.read_span(span, columns).to_pylist()]


def test_rows_have_what_the_library_finds(tmp_path):
    members = [
        *(("0001.jpg", b"\xff\xd8one"), ("0001.json", b'{"a": 1}')),
        ("notes", b"no row: no ending"),
        *(("0002.JPG", b"\xff\xd8two"), ("0002.seg.png", b"\x89PNGtwo"), ("0002.txt", "zwölf".encode())),
        *((f"{LONG_KEY}.jpg", b"\xff\xd8three"), (f"{LONG_KEY}.npy", b"\x93NUMPY")),
        ("__meta__.json", b"{}"),
    ]
    url = write_tar(tmp_path / "a.tar", members)
    rows = read_rows(WebDatasetSource(url))
    samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
    keys = [row["__key__"] for row in rows]
    assert keys == [sample["__key__"] for sample in samples] == ["0001", "0002", LONG_KEY, "__meta__"]
    for row, sample in zip(rows, samples, strict=True):
        for ending in ("jpg", "json", "seg.png", "txt", "npy"):
            value = row[ending]
            assert (value.encode() if isinstance(value, str) else value) == sample.get(ending)
    assert [[medium["path"] for medium in row["media"]] for row in rows[:2]] == [
        ["0001.jpg"],
        ["0002.JPG", "0002.seg.png"],
    ]
    assert rows[1]["path"] == "a.tar/0002"


class CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.bytes_read += end - start
        return self.fs.content[start:end]


class CountedStore(AbstractFileSystem):
    """Holds one object, and counts what is read of it."""

    protocol, content, bytes_read = "counted", b"", 0

    def _open(self, path, mode="rb", block_size=None, **options):
        return CountedFile(self, path, mode, block_size, size=len(self.content), **options)


def test_headers_tell_the_rows_and_a_span_reads_its_own_part_of_a_tar(tmp_path):
    members = [(f"{number:03}.{ending}", bytes(2**21)) for number in range(20) for ending in ("jpg", "mp4")]
    write_tar(tmp_path / "a.tar", members)
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    store = fsspec.filesystem("counted")
    store.content = (tmp_path / "a.tar").read_bytes()
    source = WebDatasetSource("counted://a.tar")
    source.read_schema()
    store.bytes_read = 0
    spans = []
    for span in source.list_spans(4):
        spans.append(span)
        assert source.read_span(span, ["path"]).num_rows == 4
    assert 0 < store.bytes_read < len(store.content) / 8, "planning reads headers"
    store.bytes_read = 0
    table = source.read_span(spans[3], ["jpg"])
    assert table["jpg"].to_pylist() == [bytes(2**21)] * 4
    assert store.bytes_read < len(store.content) / 4, "a span reads its own members"


@pytest.mark.parametrize("ended", [True, False])
def test_an_archive_may_lack_its_end_mark_but_nothing_else(ended, tmp_path):
    members = [(f"{number}.jpg", bytes(600)) for number in range(5)]
    path = tmp_path / "a.tar"
    write_tar(path, members, ended=ended)
    assert len(read_rows(WebDatasetSource(str(path)))) == 5
    whole = path.read_bytes()
    for broken in (whole[:2000], whole[: 3 * 1536] + b"x" * 512 + whole[3 * 1536 + 512 :]):
        path.write_bytes(broken)
        with pytest.raises(JobError, match=r"a\.tar: is not a tar archive, or not a whole one"):
            read_rows(WebDatasetSource(str(path)))


def test_text_that_is_not_utf8_is_named(tmp_path):
    url = write_tar(tmp_path / "a.tar", [("1.jpg", b"\xff\xd8"), ("1.txt", b"\xff")])
    with pytest.raises(JobError, match=r"a\.tar: 1\.txt is not text in UTF-8"):
        read_rows(WebDatasetSource(url), columns=["txt"])


def test_braces_number_tars_and_a_missing_one_is_named(workspace):
    for number in (8, 9, 10):
        write_tar(workspace.folder / f"in/{number:02}.tar", [("1.jpg", b"\xff\xd8")])

    def list_files(manifest):
        job = Job.model_validate(workspace.build_job(input={"manifest": str(workspace.folder / manifest)}))
        return list_manifest_files(job)

    expected = [ManifestFile(f"file://{workspace.folder}/in/{name}.tar", "webdataset") for name in ("08", "09", "10")]
    assert list_files("in/{08..10}.tar") == list_files("in/*.tar") == list_files("in") == expected
    with pytest.raises(JobError, match=r"there is no .*in/11\.tar"):
        list_files("in/{08..11}.tar")


def test_tars_beside_media_in_a_folder_are_no_manifest(workspace):
    workspace.draw_images(2)
    write_tar(workspace.folder / "pics/backup.tar", [("1.jpg", b"\xff\xd8")])
    job = Job.model_validate(workspace.build_job(input={"manifest": str(workspace.folder / "pics")}))
    assert list_manifest_files(job) == [ManifestFile(f"file://{workspace.folder}/pics", "folder")]


@pytest.mark.process
def test_a_job_asks_each_row_of_tars_once_and_new_tars_add_rows(workspace):
    for folder in ("train", "val"):  # whose tars have the same names and keys, and other pictures
        members = []
        for number in range(3):
            caption = json.dumps({"caption": f"{folder} {number}"}).encode()
            members += [(f"{number}.png", draw_png(10 * number + len(folder))), (f"{number}.json", caption)]
        write_tar(workspace.folder / "in" / folder / "0.tar", members)
    manifest = {"manifest": str(workspace.folder / "in"), "id": None, "media": [], "keep": []}
    sections = {"input": manifest, "prompt": {"user": "Is this right: {json.caption}?"}, "output": {"chunk_rows": 2}}
    assert workspace.run_job(**sections) == 0
    answers = workspace.read_answers()
    names = [f"{folder}/0.tar/{number}" for folder in ("train", "val") for number in range(3)]
    assert sorted(row["id"] for row in answers) == names
    assert all(row["media"][0]["width"] == 40 for row in answers)
    parts = workspace.list_parts()
    write_tar(workspace.folder / "in/val/1.tar", [("9.png", draw_png(200)), ("9.json", b'{"caption": "new"}')])
    assert workspace.run_job(**sections) == 0
    assert set(parts) < set(workspace.list_parts()), "what was answered stays"
    assert len(workspace.read_answers()) == 7


def test_a_column_of_one_ending_needs_an_id(workspace):
    write_tar(workspace.folder / "a.tar", [("1.png", draw_png(1)), ("1.seg.png", draw_png(2))])
    sections = {"input": {"manifest": str(workspace.folder / "a.tar"), "media": "seg.png", "keep": [], "id": "__key__"}}
    assert workspace.run_job(**sections) == 0
    [row] = workspace.read_answers()
    assert (row["id"], len(row["media"])) == ("1", 1)
