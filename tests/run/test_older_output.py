"""An output folder that the first edition of vlbatch wrote still resumes, retries, exports and reports.

It holds two chunks of three rows. One file is no picture; one file was missing and its row was answered by a retry.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.inspect.status import read_status

pytestmark = pytest.mark.process

FIRST_EDITION = Path(__file__).parents[1] / "data/output_of_the_first_edition"
FAILED_ID, ANSWERED_IDS = "detect-1", ["detect-0", "detect-2", "detect-3", "detect-5", "detect-4"]


@pytest.fixture(autouse=True)
def job_folder(tmp_path, monkeypatch):
    """A copy of the folder, which becomes the working folder."""
    folder = tmp_path / "copy"
    shutil.copytree(FIRST_EDITION, folder)
    monkeypatch.chdir(folder)
    return folder


def test_leases_stay_where_the_first_edition_put_them():
    assert main(["run", "detect.yaml", "--local"]) == 3
    assert not list(Path("answers/_lease").glob("fp=*"))
    assert (Path("answers/lease/fp=573c8b322826") / "00000003.json").exists()


def read_parts():
    return {path.name: path.read_bytes() for path in Path("answers/data").rglob("*.parquet")}


def test_resume_asks_no_row_again(capsys):
    parts = read_parts()
    assert main(["run", "detect.yaml", "--local"]) == 3
    assert "6 rows, 6 done before; 0 to do in 0 chunks" in capsys.readouterr().err
    assert read_parts() == parts


def test_status_counts_answered_failed_and_left_rows(capsys):
    status = read_status("answers")
    assert (status.answered, status.parts, status.left) == (5, 3, 0)
    assert status.wrong == {"decode/unknown_format": 1}
    assert [run["status"] for run in status.runs] == ["done", "done"]
    assert main(["status", "answers"]) == 0
    assert "first-edition" in capsys.readouterr().out


def test_export_writes_every_answered_row():
    assert main(["export", "detect.yaml", "table"]) == 3  # one row has failed
    [path] = Path("table").glob("*.parquet")
    table = pq.read_table(path)
    assert table["id"].to_pylist() == ANSWERED_IDS
    assert table["answer"][0].as_py()["boxes"][0]["bbox_2d"] == [41, 253, 224, 327]


def test_report_shows_answers_and_failures():
    assert main(["report", "answers"]) == 0
    page = Path("answers/report.html").read_text()
    assert all(row_id in page for row_id in [*ANSWERED_IDS, FAILED_ID])


def test_retry_asks_only_the_failed_row():
    parts = read_parts()
    shutil.copy("0.png", "1.png")
    assert main(["run", "detect.yaml", "--local", "--retry-errors"]) == 0
    assert {name: read_parts()[name] for name in parts} == parts
    [retried] = set(read_parts()) - set(parts)
    assert retried.endswith(".g1.parquet")
    status = read_status("answers")
    assert (status.answered, status.wrong, status.left) == (6, {}, 0)
