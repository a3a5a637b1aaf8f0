"""The command that the last lines of a run name."""

from __future__ import annotations

import shlex

import pytest

from pipeline.__main__ import main
from pipeline.job.spec import Job
from pipeline.output.commit import CommitReceipt
from pipeline.run.run_report import describe_late_preparation, format_report_command
from pipeline.run.tally import LATE_STEP, RunTotals


def read_command(line: str) -> str:
    return line.rpartition("-m pipeline ")[2]


@pytest.mark.process
def test_the_named_command_shows_the_media_of_the_run(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(2))
    assert workspace.run_job() == 0
    command = read_command(workspace.messages[-1])
    assert main(shlex.split(command)) == 0
    assert "2 rows" in (said := capsys.readouterr().out)
    assert "not shown" not in said


def test_the_named_command_allows_what_the_job_allowed_and_the_output_does_not():
    sections = {
        "input": {
            "manifest": "s3://acme/m",
            "roots": ["/my pictures"],
            "hosts": ["a:80"],
            "stores": ["s3://acme", "gs://b"],
        },
        "output": {"path": "s3://acme/out"},
    }
    job = Job.model_validate({"name": "t", "model": {"weights": "builtin:tiny"}, **sections})
    command = read_command(f"next: {format_report_command(job)}")
    assert command == "report s3://acme/out --roots '/my pictures' --hosts a:80 --stores gs://b"


def test_a_run_tells_that_its_replicas_had_to_prepare_rows():
    totals = RunTotals()
    assert list(describe_late_preparation(totals)) == []
    for number, seconds in enumerate(({LATE_STEP: 70.0}, {LATE_STEP: 5.0, "worked": 9.0}, {"worked": 1.0})):
        totals.add_receipt(CommitReceipt(f"{number:024x}", True, 4, 0, worker_seconds=seconds))
    (line,) = describe_late_preparation(totals)
    assert line.startswith("replicas spent 1:15 on preparing rows, because some chunks weigh more than 512 MiB")
