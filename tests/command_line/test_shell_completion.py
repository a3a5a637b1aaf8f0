"""Real shells complete the command `vlbatch` with the script that `completion` prints."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

from pipeline.__main__ import main

pytestmark = pytest.mark.process
BASH = r"""
source ./_vlbatch
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_vlbatch; echo "${{COMPREPLY[@]}}"
"""
ZSH = b"fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; echo it is re''ady\n"
EDITOR_IS_READY = re.compile(rb"it is ready.*\x1b\[\?2004h", re.DOTALL)


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request, tmp_path, monkeypatch, capsys):
    """What a shell shows for a line whose last word is not complete. One at a terminal waits for what is wanted."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param}")
    assert main(["completion", request.param]) == 0
    (tmp_path / "_vlbatch").write_text(capsys.readouterr().out)
    (tmp_path / "night.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return {"bash": complete_in_bash, "zsh": complete_in_zsh, "fish": complete_in_fish}[request.param]


def complete_in_bash(line: str, wanted: str) -> str:
    script = BASH.format(words=line)
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout


def complete_in_fish(line: str, wanted: str) -> str:
    script = f'source ./_vlbatch; complete -C "{line}"'
    return subprocess.run(["fish", "-c", script], capture_output=True, text=True, check=True).stdout


def complete_in_zsh(line: str, wanted: str) -> str:
    """zsh completes only at a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb", "PS1": "> "})
    try:
        os.write(terminal, ZSH)
        read_until(terminal, EDITOR_IS_READY)
        os.write(terminal, line.encode() + b"\t")
        return read_until(terminal, re.compile(re.escape(wanted.encode()))).decode()
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def read_until(terminal: int, wanted: re.Pattern[bytes]) -> bytes:
    seen, deadline = b"", time.monotonic() + 60
    while not wanted.search(seen) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096)
    return seen


@pytest.mark.parametrize(
    ("line", "completion"),
    [
        ("vlbatch expo", "export"),
        ("vlbatch run --take", "--take-over"),
        ("vlbatch run --on-change a", "add"),
        ("vlbatch run night", "night.yaml"),
        ("vlbatch completion z", "zsh"),
    ],
)
def test_commands_options_choices_and_files_are_completed(complete, line, completion):
    assert completion in complete(line, completion)


def test_without_the_library_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install vlbatch[completion]" in capsys.readouterr().err
