"""Each command ends by naming the next one, and what it names works as it is printed."""

from __future__ import annotations

import re
import shlex

import pytest

from pipeline.__main__ import main
from pipeline.builtin.scene_files import write_scene_files

NAMED = re.compile(r"python -m pipeline ([^\n#;]*)")


@pytest.mark.process
def test_from_the_first_command_to_a_score(tmp_path, monkeypatch, capsys):
    write_scene_files(tmp_path / "two words", "caption", 2)
    monkeypatch.chdir(tmp_path)
    command = ["init", "caption", "--manifest", "two words", "--model", "builtin:tiny", "--gpus", "0"]
    seen = []
    for _ in range(4):
        assert main([*command, *(["--local"] if command[0] == "run" else [])]) == 0
        seen.append(command[0])
        output = capsys.readouterr()
        *_, line = NAMED.findall(output.out + output.err)
        command = shlex.split(line)
    assert seen == ["init", "run", "report", "sample"]
    assert command[0] == "score"


def test_a_job_that_is_checked_is_planned_next_and_then_run_with_the_same_changes(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(2))
    job, change = str(workspace.write_job_file()), "prompt.user=How many {hint}?"
    assert main(["check", job, "--set", change, "--date", "2026-11-20"]) == 0
    *_, line = NAMED.findall(capsys.readouterr().out)
    assert shlex.split(line) == ["plan", job, "--set", change, "--date", "2026-11-20"]
    assert main(shlex.split(line)) == 0
    *_, line = NAMED.findall(capsys.readouterr().out)
    assert shlex.split(line) == ["run", job, "--set", change, "--date", "2026-11-20", "--limit", "20"]
    assert main([*shlex.split(line), "--local"]) == 0
    capsys.readouterr()
    assert main(["plan", job, "--set", change]) == 0
    assert "next:" not in capsys.readouterr().out, "nothing is left to run"
