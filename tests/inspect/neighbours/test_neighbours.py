"""The command `neighbours` on an output with a kept column of vectors."""

from __future__ import annotations

import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.__main__ import main
from tests.workspace import JobWorkspace

ANGLES = {"a": 0, "b": 2, "c": 3.5, "d": 90, "e": 91, "f": 180}  # degrees
SIDES = {"b": 64}  # of pictures larger than the others
HOSTILE = "<script>window.pwned=1</script>"


def write_output(workspace: JobWorkspace, vectors: pa.Array, ids: list[str]) -> str:
    (workspace.folder / "pics").mkdir(exist_ok=True)
    for number, row_id in enumerate(ids):
        side = SIDES.get(row_id, 32)
        Image.new("RGB", (side, side), (40 * number, 90, 160)).save(workspace.folder / f"pics/{number}.png")
    images = [f"pics/{number}.png" for number in range(len(ids))]
    pq.write_table(pa.table({"id": ids, "image": images, "vector": vectors}), workspace.folder / "m.parquet")
    assert workspace.run_job(input={"keep": ["vector"]}) == 0
    return str(workspace.folder / "out")


def to_vectors(angles: list[float], width: int = 16) -> list[list[float]]:
    """In the plane of two directions, and not of length 1."""
    radians = np.radians(angles)
    plane = np.stack([np.cos(radians), np.sin(radians)], axis=1)
    return (3 * np.pad(plane, ((0, 0), (0, width - 2)))).tolist()


@pytest.fixture
def output(workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    vectors = pa.array(to_vectors([*ANGLES.values()]), pa.list_(pa.float16(), 16))
    return write_output(workspace, vectors, [*ANGLES])


def read_found(file: str = "neighbours.parquet") -> list[tuple[str, str | None, float | None]]:
    table = pq.read_table(file)
    assert table.schema.names == ["id", "of", "cosine"]
    return [(row["id"], row["of"], row["cosine"]) for row in table.to_pylist()]


def test_of_near_duplicates_the_largest_picture_is_kept(output, capsys):
    assert main(["neighbours", output, "--above", "0.999"]) == 0
    assert [(row_id, of) for row_id, of, _ in read_found()] == [("c", "b"), ("a", "b"), ("e", "d")]
    assert [cosine for *_, cosine in read_found()] == pytest.approx([0.99966, 0.99939, 0.99985], abs=2e-4)
    found, next_command = capsys.readouterr().out.splitlines()
    assert found == "neighbours.parquet: 3 near duplicates of 2 rows, among 6 rows"
    command = shlex.split(next_command.partition("-m pipeline ")[2], comments=True)
    assert command == ["neighbours", output, "--above", "0.999", "--page", "neighbours.html"]
    assert main(command) == 0
    assert "run JOB --except neighbours.parquet" in capsys.readouterr().out.splitlines()[-1]


def test_where_no_rows_are_alike_a_lower_cosine_is_named(output, capsys):
    assert main(["neighbours", output, "--above", "0.9999"]) == 0
    command = shlex.split(capsys.readouterr().out.partition("-m pipeline ")[2], comments=True)
    assert command == ["neighbours", output, "--above", "0.95"]
    assert main(command) == 0
    assert read_found()


def test_nearest_rows_of_two_rows(output):
    assert main(["neighbours", output, "--near", "a", "--near", "f", "--count", "2", "--to", "near.parquet"]) == 0
    assert [(row_id, of) for row_id, of, _ in read_found("near.parquet")] == [
        ("b", "a"),
        ("c", "a"),
        ("e", "f"),
        ("d", "f"),
    ]


def test_diverse_rows(output, capsys):
    assert main(["neighbours", output, "--diverse", "3"]) == 0
    assert [row_id for row_id, _, _ in read_found()] == ["c", "f", "e"]
    assert [of for _, of, _ in read_found()] == [None, "c", "c"]
    assert capsys.readouterr().out.endswith(f"pipeline sample {output} --from neighbours.parquet\n")


def test_whitening_tells_rows_apart_that_all_point_in_one_direction(workspace, monkeypatch, capsys):
    """Three strong directions say nothing, and twelve weak ones are the same in two rows that are alike."""
    monkeypatch.chdir(workspace.folder)
    rng = np.random.default_rng(0)
    strong, weak = rng.standard_normal((400, 3)), 0.1 * rng.standard_normal((400, 12))
    weak[200:220] = weak[:20]
    vectors = np.hstack([np.full((400, 1), 9.0), strong, weak])
    ids = [f"{number:03}" for number in range(400)]
    output = write_output(workspace, pa.array(vectors.tolist(), pa.list_(pa.float32())), ids)
    assert main(["neighbours", output, "--above", "0.99"]) == 0
    assert len(read_found()) > 300  # near duplicates, so it says
    assert main(["neighbours", output, "--near", "003", "--count", "5"]) == 0
    assert "203" not in [row_id for row_id, *_ in read_found()]
    assert main(["neighbours", output, "--near", "003", "--count", "5", "--whiten", "--vectors", "white.parquet"]) == 0
    assert "white.parquet: the vectors that were compared" in capsys.readouterr().out
    nearest = read_found()
    assert nearest[0][0] == "203"
    table = pq.read_table("white.parquet").sort_by("id")
    white = np.array(table["vector"].to_pylist())
    assert table["id"].to_pylist() == ids
    assert white.mean(axis=0) == pytest.approx(0, abs=0.05)
    assert np.linalg.norm(white, axis=1) == pytest.approx(1, abs=1e-6)
    for row_id, _, cosine in nearest:
        assert cosine == pytest.approx(white[3] @ white[int(row_id)], abs=1e-6)
    spread = np.linalg.eigvalsh(np.cov(white.T))[1:]  # the first is that of the constant number
    assert spread.max() < 2 * spread.min()


def test_whitening_names_its_own_cosine(output, capsys):
    assert main(["neighbours", output, "--whiten"]) == 0
    assert "--whiten --above 0.8 --page" in capsys.readouterr().out.splitlines()[-1]


def test_vectors_that_are_all_equal_cannot_be_whitened(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace.folder)
    output = write_output(workspace, pa.array([[1.0, 0.0]] * 3, pa.list_(pa.float32())), [*"abc"])
    assert main(["neighbours", output, "--whiten"]) == 2
    assert "--whiten: all vectors are equal" in capsys.readouterr().err


def test_rows_without_a_vector_are_counted(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace.folder)
    vectors = pa.array([[1, 0], None, [0, 0], [float("nan"), 1], [1, 0.001]], pa.list_(pa.float32()))
    assert main(["neighbours", write_output(workspace, vectors, [*"abcde"])]) == 0
    assert [row_id for row_id, *_ in read_found()] == ["e"]
    assert "among 2 rows; 3 rows without a vector" in capsys.readouterr().out


def test_the_newest_vector_of_a_row_counts(output, workspace):
    rows = pq.read_table(workspace.folder / "m.parquet").slice(0, 4)
    turned = pa.array(to_vectors([ANGLES["d"], *list(ANGLES.values())[1:4]]), pa.list_(pa.float16(), 16))
    rows = rows.set_column(2, "vector", turned).set_column(1, "image", pa.array(["pics/5.png"] * 4))
    pq.write_table(rows, workspace.folder / "m.parquet")
    assert workspace.run_job(input={"keep": ["vector"]}) == 0
    assert main(["neighbours", output, "--near", "a", "--count", "1"]) == 0
    assert [row_id for row_id, *_ in read_found()] == ["d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--near", "nobody"], "--near nobody: no row of that id has a vector"),
        (["--column", "text"], "--column text is no column of vectors; columns of vectors: vector"),
        (["--to", "found.csv"], "--to found.csv: the table is Parquet"),
        (["--vectors", "white.csv"], "--vectors white.csv: the table is Parquet"),
    ],
)
def test_mistakes_are_explained(output, capsys, arguments, message):
    assert main(["neighbours", output, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_output_without_vectors_is_refused(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(1))
    assert workspace.run_job() == 0
    assert main(["neighbours", str(workspace.folder / "out")]) == 2
    assert "no column of this output holds vectors" in capsys.readouterr().err


@pytest.mark.process
def test_the_page_shows_each_group_as_a_row_of_thumbnails(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace.folder)
    vectors = pa.array(to_vectors([0, 1, 90, 91, 180]), pa.list_(pa.float32(), 16))
    output = write_output(workspace, vectors, ["a", "b", HOSTILE, "d", "e"])
    assert main(["neighbours", output, "--page", "page.html", "--roots", "."]) == 0
    page = (workspace.folder / "page.html").read_text()
    assert page.count("<section") == 2
    assert page.count("data:image/webp") == 4
    assert "0.9998" in page
    assert HOSTILE not in page
    assert "media that are not shown" not in capsys.readouterr().out
    assert main(["neighbours", output, "--diverse", "4", "--page", "page.html"]) == 0
    assert "not shown: 4, see --roots" in capsys.readouterr().out
    assert (workspace.folder / "page.html").read_text().count("<figure>") == 4


def test_a_sample_is_drawn_among_the_rows_of_a_table(output, workspace, capsys):
    assert main(["neighbours", output, "--diverse", "3"]) == 0
    assert main(["sample", output, "--from", "neighbours.parquet", "--to", "check.csv"]) == 0
    assert [line.partition(",")[0] for line in (workspace.folder / "check.csv").read_text().splitlines()[1:]] == [
        '"c"',
        '"e"',
        '"f"',
    ]
    (workspace.folder / "other.csv").write_text("name\nc\n")
    capsys.readouterr()
    for table, message in {
        "other.csv": "--from other.csv has no column id; it has name",
        "nothing.parquet": "--from nothing.parquet: ",
        "pics": "--from pics: give a table (Parquet, JSONL or CSV) with a column `id`",
    }.items():
        assert main(["sample", output, "--from", table, "--to", "check2.csv"]) == 2
        assert message in capsys.readouterr().err


def test_a_run_leaves_the_duplicates_out(output, workspace, capsys):
    assert main(["neighbours", output, "--above", "0.999"]) == 0
    job = str(workspace.write_job_file(prompt={"user": "And now?"}, output={"path": str(workspace.folder / "second")}))
    changes = ["--set=input.keep=[]", "--local"]
    assert main(["run", job, *changes, "--except", "neighbours.parquet"]) == 0
    assert "3 rows, 3 more that --except leaves out; 3 to do" in capsys.readouterr().err
    assert workspace.list_answered_ids("second") == ["b", "d", "f"]
    (workspace.folder / "other.csv").write_text("name\nc\n")
    assert main(["run", job, *changes, "--except", "other.csv"]) == 2
    assert "--except other.csv has no column id; it has name" in capsys.readouterr().err


@pytest.mark.process
def test_the_report_shows_the_beginning_of_a_vector(output, workspace):
    assert main(["report", output, "--roots", "."]) == 0
    page = (workspace.folder / "out/report.html").read_text()
    assert page.count("16 numbers: 3, 0, 0, 0, ...") == 1
    assert page.count("16 numbers: ") == len(ANGLES)
    assert '<span class="chip">' not in page
