"""`input.version`: a picture that is replaced under the same URI is asked about again."""

from __future__ import annotations

import os
import time

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.manifest.row_reader import RowReader
from tests.fetch.conftest import serve_scans

ETAG = {"version": "etag"}


def replace_picture(workspace, number, color="red"):
    path = workspace.folder / f"pics/{number}.png"
    Image.new("RGB", (30, 40), color).save(path)
    os.utime(path, (1, 1))


@pytest.fixture
def rows(workspace):
    rows = workspace.draw_images(6)
    workspace.write_manifest(rows)
    return rows


@pytest.mark.parametrize("version", ["etag", "mtime"])
@pytest.mark.parametrize("id_column", ["id", None])
def test_only_a_replaced_picture_is_asked_again(version, id_column, workspace, rows):
    keys = {"id": id_column, "version": version}
    assert workspace.run_job(input=keys) == 0
    assert workspace.run_job(input=keys) == 0
    assert "6 rows, 6 done before; 0 to do" in "\n".join(workspace.messages)
    replace_picture(workspace, 2)
    assert workspace.run_job(input=keys) == 0
    assert "6 rows, 5 done before; 1 to do" in "\n".join(workspace.messages)
    answers = [row for row in workspace.read_answers() if row["media"][0]["uri"].endswith("/2.png")]
    assert sorted(row["media"][0]["width"] for row in answers) == [30, 40]
    assert len({row["media_versions"][0] for row in answers}) == 2


def test_an_export_has_the_answer_about_todays_picture(workspace, rows):
    job = workspace.write_job_file(input=ETAG)
    assert main(["run", str(job), "--local"]) == 0
    replace_picture(workspace, 2)
    assert main(["export", str(job), str(workspace.folder / "early")]) == 4  # it is not asked yet
    assert main(["run", str(job), "--local"]) == 0
    assert main(["export", str(job), str(workspace.folder / "table")]) == 0
    exported = pq.read_table(workspace.folder / "table").to_pylist()
    assert sorted((row["id"], row["media"][0]["width"]) for row in exported) == [
        (f"r{number}", 30 if number == 2 else 40) for number in range(6)
    ]


def test_without_versions_neither_questions_nor_columns_change(workspace, rows):
    assert workspace.run_job() == 0
    replace_picture(workspace, 2)
    assert workspace.run_job(input={"version": "none"}) == 0
    assert "6 done before; 0 to do" in "\n".join(workspace.messages)
    assert "media_versions" not in workspace.read_answers()[0]


def test_a_row_without_uris_asks_the_same_with_and_without_versions(workspace):
    chats = [{"id": "t", "messages": [{"role": "user", "content": "Hello?"}]}]
    workspace.write_manifest(chats)
    sections = {"input": {"media": [], "keep": []}, "prompt": {"user": None}}
    assert workspace.run_job(**sections) == 0
    assert workspace.run_job(input={**sections["input"], **ETAG}, prompt=sections["prompt"]) == 0
    assert "1 done before; 0 to do" in "\n".join(workspace.messages)


def test_a_version_that_cannot_be_read_is_an_error_row_until_it_can(workspace, rows):
    hidden = workspace.folder / "pics/3.png"
    hidden.rename(workspace.folder / "away.png")
    assert workspace.run_job(input=ETAG) == 3
    [letter] = workspace.read_dead_letters()
    assert (letter["id"], letter["stage"], letter["kind"]) == ("r3", "fetch", "not_found")
    (workspace.folder / "away.png").rename(hidden)
    assert workspace.run_job(input=ETAG) == 0  # another question than that about no picture
    assert "5 done before; 1 to do" in "\n".join(workspace.messages)


def test_a_picture_that_is_replaced_after_planning_is_an_error_row(workspace, rows, monkeypatch):
    read_rows = RowReader.read_rows

    def replace_then_read(self, *args, **kwargs):
        replace_picture(workspace, 5)
        return read_rows(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RowReader, "read_rows", replace_then_read)
        assert workspace.run_job(input=ETAG) == 3
    [letter] = workspace.read_dead_letters()
    assert (letter["id"], letter["kind"]) == ("r5", "changed")
    assert "has another version than when the run was planned; run the same command again" in letter["message"]
    assert workspace.run_job(input=ETAG) == 0
    assert len(workspace.read_answers()) == 6


def test_the_name_of_the_column_is_reserved_only_with_versions(workspace, rows, capsys):
    workspace.write_manifest([{**row, "media_versions": "x"} for row in rows])
    job = workspace.write_job_file(input={"keep": ["media_versions"]})
    assert main(["check", str(job)]) == 0
    assert main(["check", str(job), "--set", "input.version=mtime"]) == 2
    assert "every output has a column media_versions of its own" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("version", ["etag", "mtime"])
def test_a_replaced_picture_of_a_listed_bucket_is_asked_again(version, workspace):
    workspace.draw_images(3)
    pictures = {f"pics/{n}.png": (workspace.folder / f"pics/{n}.png").read_bytes() for n in range(3)}
    keys = {"manifest": "s3://scans/pics", "id": None, "media": [], "keep": [], "version": version}
    with serve_scans(pictures) as client:
        assert workspace.run_job(input=keys) == 0
        assert workspace.run_job(input=keys) == 0
        assert "3 done before; 0 to do" in "\n".join(workspace.messages)
        tags = {row["id"]: row["media_versions"] for row in workspace.read_answers()}
        if version == "etag":
            assert tags["1.png"] == [client.head_object(Bucket="scans", Key="pics/1.png")["ETag"]]
        time.sleep(1.1)  # S3 tells the time in seconds
        client.put_object(Bucket="scans", Key="pics/1.png", Body=pictures["pics/0.png"])
        assert workspace.run_job(input=keys) == 0
    assert "2 done before; 1 to do" in "\n".join(workspace.messages)
