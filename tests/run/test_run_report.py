"""The command that the last lines of a run name."""

from __future__ import annotations

import shlex

import pytest

from pipeline.__main__ import main
from pipeline.job.spec import Job
from pipeline.run.run_report import format_report_command


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
