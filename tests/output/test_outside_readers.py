"""Libraries that people use read the folder `data/` of an output, as the README says."""

from __future__ import annotations

import datasets
import pandas
import pyarrow.parquet as pq
import pytest

from tests.workspace import JobWorkspace

pytestmark = pytest.mark.process
BOXES = '{"boxes": [{"bbox_2d": [1, 2, 30, 20], "label": "cup"}]}'


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Two parts with answers, and one between them whose rows all failed."""
    workspace = JobWorkspace(tmp_path_factory.mktemp("readers"))
    good_rows = workspace.draw_images(6)
    workspace.write_manifest([*good_rows[:4], *workspace.write_broken_images(4), *good_rows[4:]])
    assert workspace.run_job(answer={"schema": "boxes"}, engine={"default": BOXES}) == 3
    folder = workspace.folder / "out/data"
    assert sorted(pq.read_metadata(path).num_rows for path in folder.glob("*/*.parquet")) == [0, 2, 4]
    return folder


def test_hugging_face_datasets_loads_all_parts(data_folder, tmp_path):
    pattern = str(data_folder / "*/*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    rows = sorted(loaded, key=lambda row: row["id"])
    assert [(row["id"], row["hint"]) for row in rows] == [(f"r{number}", "h") for number in range(6)]
    assert rows[0]["answer"]["boxes"][0]["label"] == "cup"
    assert rows[0]["media"][0]["width"] == 40


def test_pandas_reads_the_folder(data_folder):
    frame = pandas.read_parquet(data_folder)
    assert sorted(frame["id"]) == [f"r{number}" for number in range(6)]
    assert frame["answer"][0]["boxes"][0]["label"] == "cup"
