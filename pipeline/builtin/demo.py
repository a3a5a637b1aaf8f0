"""A folder -> drawn pictures, videos and invoices, four jobs run over them through Ray, and how right they were.

All of it is the real thing, only small: the jobs in jobs/demo, the built-in models, unseen scenes, Parquet.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.builtin import scene_files, scores
from pipeline.builtin.evaluate import TASKS, compared, run, table
from pipeline.cluster import ray_runner

SCENES = 16  # of each task
FIRST = 100_000  # evaluation looks at earlier ones
SHOWN = ("caption", "detect", "video")


def demo(folder: str) -> int:
    place, started = Path(folder), time.monotonic()
    for task in TASKS:
        scene_files.write(place / task, task, SCENES, start=FIRST)
        shutil.rmtree(place / "answers" / task, ignore_errors=True)  # whoever runs the demo wants to see it run
    print(f"Drawn: {SCENES} scenes for each of {', '.join(TASKS)}, in {place}. Running jobs/demo/*.yaml on Ray:")
    codes, pairs = [], {}
    with ray_runner.joined():
        for task in TASKS:
            codes.append(run(task, place, [], here=False))
            pairs[task] = compared(place / task / "manifest.parquet", place / "answers" / task)
            print(f"  {task} done after {time.monotonic() - started:.0f} s", flush=True)
    print("\nAnswers against the truth (1 is best):")
    print(table({task: scores.score(task, pairs[task]) for task in TASKS}))
    for task in SHOWN:
        print(shown(task, place, *pairs[task][0]))
    here = Path(sys.executable)  # of make's environment, which few have activated
    print(
        NEXT.format(place=place, python=here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else "python")
    )
    return max(codes)


def shown(task: str, place: Path, answer: Mapping[str, Any] | None, truth: Mapping[str, Any]) -> str:
    """One answer, and what was drawn."""
    path = next((place / task).glob(f"{FIRST:05}.*"))
    return f"\n{path}\n  answer {json.dumps(said(answer), default=str)}\n  truth  {json.dumps(truth)}"


def said(value: Any) -> Any:
    """An answer without the fields that it leaves out, which are null in its column."""
    if isinstance(value, Mapping):
        return {name: said(part) for name, part in value.items() if part is not None}
    return [said(part) for part in value] if isinstance(value, list) else value


NEXT = """
The answers: {place}/answers/*/data/*/*.parquet, for instance
  SELECT id, answer.number, answer.total FROM '{place}/answers/invoice/data/*/*.parquet'
Look at them: {python} -m pipeline report {place}/answers/detect
These models know drawn scenes only; of a photograph they say something well formed and wrong. Next, a real one:
  {python} -m pipeline run jobs/caption.yaml --set input.manifest=./my-pictures --limit 20"""
