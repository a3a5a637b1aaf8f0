"""Which files a manifest is made of, where its folder holds other things."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from tests.fetch.conftest import serve_scans

FOLDER_FILES = ("day1.parquet", "sub/day2.jsonl")
OTHER_OUTPUT = (
    "labels/data/fp=573c8b322826/10e15942ff94edd544ae29bf.parquet",
    "labels/errors/fp=573c8b322826/10e15942ff94edd544ae29bf-7570e505.parquet",
    "labels/questions/573c8b322826.json",
)
EXPORT = ("clean/_export.json", "clean/_SUCCESS", "clean/year=2026/0a1b.parquet", "clean/_groups/0a1b.json")


@pytest.fixture
def list_files(workspace):
    """Lists the files of a manifest by their paths in the folder `in`, and what was said about it."""

    def list_found(manifest="in", output="out", follow_links=False):
        sections = {
            "input": {"manifest": str(workspace.folder / manifest), "follow_links": follow_links},
            "output": {"path": str(workspace.folder / output)},
        }
        notes = []
        files = list_manifest_files(Job.model_validate(workspace.build_job(**sections)), notes.append)
        return [file.url.partition("/in/")[2] for file in files], notes

    for name in (*FOLDER_FILES, *OTHER_OUTPUT, *EXPORT):
        path = workspace.folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not empty")
    return list_found


@pytest.mark.parametrize("manifest", ["in", "in/"])
def test_outputs_and_exports_below_a_folder_are_no_part_of_the_manifest(manifest, list_files):
    names, [note] = list_files(manifest)
    assert names == [*FOLDER_FILES]
    assert note.startswith("left out of the manifest: 3 files in outputs and exports of other jobs, such as ")


def test_a_pattern_leaves_out_outputs_that_it_does_not_lead_into(list_files):
    assert list_files("in/**/*.parquet")[0][0] == "clean/year=2026/0a1b.parquet"
    assert not any("fp=" in name for name in list_files("in/**/*.parquet")[0])


@pytest.mark.parametrize("manifest", ["in/labels/data", "in/labels/data/fp=573c8b322826", "in/labels/data/*/*.parquet"])
def test_an_output_that_the_manifest_leads_into_is_read(manifest, list_files):
    assert list_files(manifest) == ([OTHER_OUTPUT[0]], [])


def test_an_export_that_the_manifest_names_is_read(list_files):
    assert list_files("in/clean") == (["clean/year=2026/0a1b.parquet"], [])


def test_the_jobs_own_output_is_left_out_without_a_word(list_files):
    names, [note] = list_files(output="in/labels")
    assert names == [*FOLDER_FILES]
    assert "1 file in outputs and exports" in note  # the export


@pytest.mark.parametrize("output", ["in", "in/"])
def test_an_output_in_the_manifests_own_folder_is_refused(output, list_files):
    with pytest.raises(JobError, match=r"output\.path is .*/in, the manifest's own folder; choose another folder"):
        list_files(output=output)


def test_an_output_that_contains_the_manifest_is_refused(list_files):
    with pytest.raises(JobError, match=r"output\.path contains the manifest in .*/in; choose another folder"):
        list_files(output=".")


@pytest.fixture
def ask_about(workspace):
    """Runs a job over a manifest of the folder, without naming a column. Returns the answered ids."""

    def ask(manifest, **input_keys):
        keys = {"manifest": str(workspace.folder / manifest), "id": None, "media": [], "keep": [], **input_keys}
        assert workspace.run_job(input=keys) == 0
        return workspace.list_answered_ids()

    workspace.draw_images(3)
    return ask


@pytest.mark.parametrize(
    ("manifest", "ids"),
    [("pics/[01].png", ["0.png", "1.png"]), ("p*/2.png", ["pics/2.png"]), ("pics/1.png", ["1.png"])],
)
def test_a_pattern_of_pictures_and_one_picture_are_manifests(manifest, ids, ask_about):
    assert ask_about(manifest) == ids


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_the_metadata_of_an_imagefolder_names_its_rows(name, workspace, ask_about):
    path = workspace.folder / "pics" / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"file_name": ["1.png"], "hint": ["x"]}), path)
    else:
        text = '{"file_name": "1.png", "hint": "x"}\n' if name.endswith("jsonl") else "file_name,hint\n1.png,x\n"
        path.write_text(text)
    assert ask_about("pics", keep=["hint"]) == ["1.png"]
    assert workspace.read_answers()[0]["hint"] == "x"


def test_imagefolders_of_several_splits_are_refused(workspace):
    for split in ("test", "train"):
        (workspace.folder / "in" / split).mkdir(parents=True)
        (workspace.folder / "in" / split / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    sections = {"input": {"manifest": str(workspace.folder / "in"), "media": [], "id": None, "keep": []}}
    with pytest.raises(JobError, match=r"in/test and .*in/train have metadata of their own"):
        workspace.run_job(**sections)


def test_a_folder_of_csv_files_is_a_manifest_unless_it_holds_media(workspace, ask_about):
    (workspace.folder / "pics/labels.csv").write_text("name,color\n0.png,red\n")
    assert ask_about("pics") == ["0.png", "1.png", "2.png"]
    assert (
        workspace.messages[0]
        == f"left out of the manifest: 1 file of {workspace.folder}/pics that are no media: 1 .csv"
    )
    (workspace.folder / "tables").mkdir()
    for number in range(2):
        (workspace.folder / f"tables/{number}.csv").write_text(f"name,uri\n{number},../pics/{number}.png\n")
    keys = {"id": "name", "media": ["uri"], "roots": [str(workspace.folder)]}
    assert ask_about("tables", **keys) == ["0", "0.png", "1", "1.png", "2.png"]


def test_links_out_of_a_folder_say_where_they_lead(workspace, ask_about):
    (workspace.folder / "links/sub").mkdir(parents=True)
    (workspace.folder / "links/a\nb.png").symlink_to(workspace.folder / "pics/0.png")
    (workspace.folder / "links/sub/pics").symlink_to(workspace.folder / "pics")
    keys = {"manifest": str(workspace.folder / "links"), "id": None, "media": [], "keep": []}
    assert workspace.run_job(input=keys, output={"path": str(workspace.folder / "refused")}) == 3
    [letter] = workspace.read_dead_letters("refused")
    assert f"is a link to {workspace.folder}/pics/0.png, which lies outside" in letter["message"]
    assert "set input.follow_links: true" in letter["message"]
    assert "1 linked folder, such as " in workspace.messages[0]
    assert ask_about("links", follow_links=True) == ["a%0Ab.png", *(f"sub/pics/{number}.png" for number in range(3))]


def test_links_in_a_circle_end(workspace, ask_about):
    (workspace.folder / "links/sub").mkdir(parents=True)
    (workspace.folder / "links/sub/up").symlink_to(workspace.folder / "links")
    (workspace.folder / "links/self").symlink_to(workspace.folder / "links/self")
    (workspace.folder / "links/pics").symlink_to(workspace.folder / "pics")
    (workspace.folder / "pics/back").symlink_to(workspace.folder / "links/sub")
    assert ask_about("links", follow_links=True) == [f"pics/{number}.png" for number in range(3)]


def test_a_table_in_a_linked_folder_is_the_manifest(workspace, list_files):
    (workspace.folder / "day3").mkdir()
    (workspace.folder / "day3/m.jsonl").write_text("{}\n")
    (workspace.folder / "in/day3").symlink_to(workspace.folder / "day3")
    assert list_files()[0] == [*FOLDER_FILES]
    assert list_files(follow_links=True)[0] == ["day1.parquet", "day3/m.jsonl", "sub/day2.jsonl"]


def test_an_empty_folder_is_refused_by_check_and_leaves_no_output(workspace, capsys):
    (workspace.folder / "empty").mkdir()
    job = workspace.write_job_file(input={"manifest": str(workspace.folder / "empty"), "media": [], "id": None})
    assert main(["check", str(job)]) == main(["run", str(job), "--local"]) == 2
    assert capsys.readouterr().err.count("/empty holds no image, video or document; their names end in .jpg") == 2
    assert not (workspace.folder / "out").exists()


def test_an_output_that_is_the_manifest_file_is_refused(workspace):
    path = str(workspace.folder / "m.csv")
    (workspace.folder / "m.csv").write_text("id,image,hint\na,b,c\n")
    with pytest.raises(JobError, match=r"output\.path is .*/m\.csv, the manifest itself; choose another folder"):
        workspace.run_job(input={"manifest": path}, output={"path": path})


def test_a_manifest_without_rows_cannot_run(workspace):
    (workspace.folder / "m.csv").write_text("id,image,hint\n")
    with pytest.raises(JobError, match=r"m\.csv holds no rows"):
        workspace.run_job(input={"manifest": str(workspace.folder / "m.csv")})


def test_empty_files_among_others_are_left_out_with_a_note(workspace, list_files):
    empty = [workspace.folder / "in" / name for name in ("c.jsonl", "d.ndjson")]
    for path in empty:
        path.touch()
    names, notes = list_files()
    assert names == [*FOLDER_FILES]
    assert notes[1] == f"left out of the manifest: 2 files without a byte, such as {empty[0].as_uri()}"


ODD_NAMES = ("a b", "a#1", "a%20b", "a+b", "%zz", "q?y=1", "p#page=2", "\u00fc/\u65e5\u672c", "x//y", "dir.png/inner")


@pytest.mark.process
def test_pictures_of_a_bucket_are_found_whatever_their_keys_contain(workspace):
    workspace.draw_images(1)
    picture, names = (workspace.folder / "pics/0.png").read_bytes(), [f"{name}.png" for name in ODD_NAMES]
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": names, "image": [f"../pics/{name}" for name in names]}), sink)
    objects = {f"pics/{name}": picture for name in names} | {"tables/m.parquet": sink.getvalue()}
    folder = {"manifest": "s3://scans/pics", "id": None, "media": [], "keep": []}
    pattern = {**folder, "manifest": "s3://scans/pics/*.png"}
    table = {"manifest": "s3://scans/tables/m.parquet", "keep": []}
    expected = {"folder": names, "pattern": [name for name in names if "/" not in name], "table": names}
    with serve_scans(objects):
        for out, section in {"folder": folder, "pattern": pattern, "table": table}.items():
            assert workspace.run_job(input=section, output={"path": str(workspace.folder / out)}) == 0
            assert workspace.list_answered_ids(out) == sorted(expected[out])
