"""The results of all steps as one JSON file and one Markdown file, and what no rehearsal can show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.bench import harness

MEASURED = Path(__file__).parents[2] / "pipeline" / "inspect" / "plan" / "measured.json"
NOT_REHEARSED = (
    "the flash kernel, the int4 kernel and grouped products of CUDA: definitions of theirs run in their place",
    "capture and replay of CUDA graphs: the stand-in computes again at each replay, into the same buffers",
    "how far bfloat16 kernels of a card are off",
    "real memory: fragments, what libraries take, expandable segments, running out of it",
    "steps launched ahead beside a device that is still busy; gaps between steps",
    "NCCL and ranks on several cards: the kit runs on one",
    "`engine.compile` on CUDA (Triton)",
    "all speeds: those of a rehearsal mean nothing",
)
GOALS = {  # of figures whose name has this form
    r"prefill, .* MFU": 0.5,
    r"decode, .* share of bandwidth": 0.6,
    r"(caption|detect), ours over static batches": 3.0,
    r"invoice, ours over static batches": 6.0,
}


def write_summary(out: Path, results: Sequence[dict[str, Any]], *, seconds: float, is_rehearsal: bool) -> str:
    """Written after every step. Returns the Markdown."""
    values = {"rehearsal": is_rehearsal, "seconds": round(seconds, 1), "steps": list(results)}
    if is_rehearsal:
        values["not_rehearsed"] = list(NOT_REHEARSED)
    (out / "summary.json").write_text(json.dumps(values, indent=1) + "\n")
    text = "\n".join(format_summary(results, seconds=seconds, is_rehearsal=is_rehearsal)) + "\n"
    (out / "summary.md").write_text(text)
    return text


def format_summary(results: Sequence[dict[str, Any]], *, seconds: float, is_rehearsal: bool) -> list[str]:
    lines = ["# Rehearsal on a CPU: its speeds mean nothing" if is_rehearsal else "# On a card", ""]
    rows = [
        [result["step"], result["status"], result.get("seconds", 0.0), count_checks(result), result.get("error") or ""]
        for result in results
    ]
    lines += [harness.format_table(["step", "result", "seconds", "checks", "error"], rows), ""]
    lines += [f"{seconds:.0f} s in all", ""]
    failed = [
        [result["step"], check["name"], check["detail"]]
        for result in results
        for check in result["checks"]
        if not check["passed"]
    ]
    if failed:
        lines += ["## Failed checks", "", harness.format_table(["step", "check", "found"], failed), ""]
    if goals := [] if is_rehearsal else list(list_goals(results)):
        lines += ["## Goals", "", harness.format_table(["step", "figure", "value", "goal", ""], goals), ""]
    figures = [[result["step"], name, value] for result in results for name, value in result["figures"].items()]
    lines += ["## Figures", "", harness.format_table(["step", "figure", "value"], figures), ""]
    if is_rehearsal:
        lines += ["## What a rehearsal cannot show", "", *(f"- {line}" for line in NOT_REHEARSED), ""]
    return lines


def count_checks(result: dict[str, Any]) -> str:
    passed = sum(check["passed"] for check in result["checks"])
    return f"{passed} of {len(result['checks'])}"


def list_goals(results: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    for result in results:
        for name, value in result["figures"].items():
            for form, goal in GOALS.items():
                if re.fullmatch(form, name) and isinstance(value, float):
                    yield [result["step"], name, value, goal, "reached" if value >= goal else "missed"]


def write_measured_speeds(paths: Sequence[Path], results: Sequence[dict[str, Any]]) -> None:
    """Adds the rows to the table that `plan` reads. They replace older ones of the same rows, model and card."""
    rows = json.loads(MEASURED.read_text()) + [row for result in results for row in result["rows"]]
    newest = {tuple(map(str, map(row.get, ("engine", "card", "family", "mix", "model")))): row for row in rows}
    lines = ",\n".join(json.dumps(row) for row in newest.values())
    for path in paths:
        path.write_text(f"[\n{lines}\n]\n" if lines else "[]\n")
