"""Which files a manifest is made of, where its folder holds other things."""

from __future__ import annotations

import pytest

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files

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

    def list_found(manifest="in", output="out"):
        sections = {
            "input": {"manifest": str(workspace.folder / manifest)},
            "output": {"path": str(workspace.folder / output)},
        }
        notes = []
        files = list_manifest_files(Job.model_validate(workspace.build_job(**sections)), notes.append)
        return [file.url.partition("/in/")[2] for file in files], notes

    for name in (*FOLDER_FILES, *OTHER_OUTPUT, *EXPORT):
        path = workspace.folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
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
