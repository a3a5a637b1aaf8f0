"""Each command ends by naming the next one, and what it names works as it is printed."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.builtin.scene_files import write_scene_files
from pipeline.command_text import format_command, shorten_path

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
    *_, line = NAMED.findall(capsys.readouterr().out)
    assert shlex.split(line)[0] == "report", "nothing is left to run"


@pytest.mark.process
def test_from_an_export_and_a_truth_to_what_is_wrong(workspace, capsys, monkeypatch):
    workspace.write_manifest(workspace.draw_images(3))
    job = str(workspace.write_job_file())
    monkeypatch.chdir(workspace.folder)
    assert main(["run", job, "--local"]) == 0
    assert main(["export", job, "table"]) == 0
    *_, line = NAMED.findall(capsys.readouterr().out)
    assert shlex.split(line) == ["sample", "out"]
    assert main(shlex.split(line)) == 0
    sample = Path("sample.csv")
    header, *rows = csv.reader(sample.read_text().splitlines())
    with sample.open("w", newline="") as file:
        csv.writer(file).writerows([header, *([*row[:-1], row[-2]] for row in rows)])  # all answers are right
    for command in (["score", "out", "--truth", "sample.csv"], ["report", "out", "--truth", "sample.csv"]):
        assert main(command) == 0
        *_, line = NAMED.findall(capsys.readouterr().out)
        expected = "report" if command[0] == "score" else "compare"
        assert shlex.split(line) == [expected, "out", "--truth", "sample.csv"]


@pytest.mark.parametrize(
    ("started", "named"),
    [
        ({"argv": "/usr/bin/vlbatch", "python": "/usr/bin/python"}, "vlbatch"),
        ({"argv": "x/pipeline/__main__.py", "python": "{folder}/.venv/bin/python"}, ".venv/bin/python -m pipeline"),
        ({"argv": "x/pipeline/__main__.py", "python": "{folder}/bin/python"}, "python -m pipeline"),
        ({"argv": "x/pipeline/__main__.py", "python": "/elsewhere/python3.12"}, "python -m pipeline"),
    ],
)
def test_a_command_is_begun_as_the_process_was(tmp_path, monkeypatch, started, named):
    on_path = tmp_path / "bin" / "python"
    on_path.parent.mkdir()
    on_path.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [started["argv"]])
    monkeypatch.setattr(sys, "executable", started["python"].format(folder=tmp_path))
    assert format_command("run", "my job.yaml") == f"{named} run 'my job.yaml'"


def test_paths_are_seen_from_here_where_that_is_shorter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shorten_path(f"{tmp_path}/u/../out") == "out"
    assert shorten_path("/a") == "/a"
    assert shorten_path("s3://acme/a/../b") == "s3://acme/a/../b"


def test_help_and_examples_name_the_program_as_it_was_called(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vlbatch"])
    for words in (["--help"], ["run", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        shown = capsys.readouterr().out
        assert shown.startswith("usage: vlbatch ")
        assert "python -m pipeline" not in shown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "job.yaml", "--limt", "20"], "unrecognized arguments: --limt 20. Did you mean '--limit'?"),
        (["report", "out", "--truht=a.csv"], "unrecognized arguments: --truht=a.csv. Did you mean '--truth'?"),
        (["plan", "job.yaml", "--xyz"], "unrecognized arguments: --xyz; plan --help lists all options"),
    ],
)
def test_an_unknown_option_says_which_one_was_meant(words, hint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert hint in capsys.readouterr().err


def test_a_plan_is_wrapped_between_words_on_a_narrow_terminal_only(workspace, monkeypatch, capsys):
    workspace.write_manifest(workspace.draw_images(1))
    job = str(workspace.write_job_file())
    monkeypatch.setenv("COLUMNS", "80")
    printed = []
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        assert main(["plan", job]) == 0
        printed.append(capsys.readouterr().out.partition("next:")[0])  # a command stays in one piece
    assert [max(map(len, text.splitlines())) > 80 for text in printed] == [True, False]
    assert printed[0].split() == printed[1].split()
