"""Writes the script by which a shell completes the command `vlbatch`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pipeline.errors import PipelineError

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "vlbatch"  # shells complete a program, not `python -m pipeline`


def build_completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    try:
        import shtab
    except ImportError as error:
        raise PipelineError("completion needs the package shtab: pip install vlbatch[completion]") from error
    parser.prog = PROGRAM
    for action in find_arguments(parser):
        if action.choices is None and action.type is None and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def find_arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command_parser in action.choices.values():
                yield from find_arguments(command_parser)
