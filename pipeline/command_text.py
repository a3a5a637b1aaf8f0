"""Writes commands and paths in messages as whoever reads them can copy them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from pathlib import Path


def format_command(*words: str) -> str:
    """A command of ours, begun as this process was."""
    return f"{format_program()} {shlex.join(words)}"


def format_program() -> str:
    """The installed script, or Python by its name on the PATH. An environment that is not activated is named by its
    path if it lies below the working directory."""
    if Path(sys.argv[0]).name == "vlbatch":
        return "vlbatch"
    python = Path(sys.executable)
    names = [name for name in ("python", "python3") if (found := shutil.which(name)) and Path(found) == python]
    if not names and python.is_relative_to(Path.cwd()):
        names = [str(python.relative_to(Path.cwd()))]
    return f"{shlex.quote([*names, 'python'][0])} -m pipeline"


def tidy_path(path: str) -> str:
    """A local path without `..`, unless a link makes the shorter one lead elsewhere. URLs stay as they are.

    >>> tidy_path("/here/../scans/a.png"), tidy_path("s3://acme/../a")
    ('/scans/a.png', 's3://acme/../a')
    """
    if "://" in path or ".." not in path.split("/"):
        return path
    tidy = os.path.normpath(path)
    return tidy if os.path.realpath(tidy) == os.path.realpath(path) else path


def shorten_path(path: str) -> str:
    """A local path as seen from the working directory, where that is shorter. URLs stay as they are."""
    return path if "://" in path else min(os.path.relpath(path), path, key=len)


def wrap_line(line: str, width: int, *, indent: int) -> str:
    """Between words, where a terminal would break a long line anywhere; further lines are indented.

    >>> print(wrap_line("rows    12 with one picture", 20, indent=8))
    rows    12 with one
            picture
    """
    return textwrap.fill(
        line, max(width, 2 * indent), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
