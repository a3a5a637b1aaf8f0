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
from pipeline.builtin.evaluate import TASKS, format_figures, read_answers_and_truths, run_task
from pipeline.cluster import ray_runner

SCENES_PER_TASK = 16  # of each task
FIRST_SCENE = 100_000  # evaluation looks at earlier ones
SHOWN_TASKS = ("caption", "detect", "video")


def run_demo(folder: str) -> int:
    place, started = Path(folder), time.monotonic()
    for task in TASKS:
        scene_files.write_scene_files(place / task, task, SCENES_PER_TASK, first_scene=FIRST_SCENE)
        shutil.rmtree(place / "answers" / task, ignore_errors=True)  # whoever runs the demo wants to see it run
    print(
        f"Drawn: {SCENES_PER_TASK} scenes for each of {', '.join(TASKS)}, in {place}. Running jobs/demo/*.yaml on Ray:"
    )
    codes, pairs = [], {}
    with ray_runner.connect_to_ray():
        for task in TASKS:
            codes.append(run_task(task, place, [], local=False))
            pairs[task] = read_answers_and_truths(place / task / "manifest.parquet", place / "answers" / task)
            print(f"  {task} done after {time.monotonic() - started:.0f} s", flush=True)
    print("\nAnswers against the truth (1 is best):")
    print(format_figures({task: scores.score_answers(task, pairs[task]) for task in TASKS}))
    for task in SHOWN_TASKS:
        print(format_example(task, place, *pairs[task][0]))
    here = Path(sys.executable)  # of make's environment, which few have activated
    print(
        NEXT_STEPS.format(
            place=place, python=here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else "python"
        )
    )
    return max(codes)


def format_example(task: str, folder: Path, answer: Mapping[str, Any] | None, truth: Mapping[str, Any]) -> str:
    """One answer, and what was drawn."""
    path = next((folder / task).glob(f"{FIRST_SCENE:05}.*"))
    return f"\n{path}\n  answer {json.dumps(drop_nulls(answer), default=str)}\n  truth  {json.dumps(truth)}"


def drop_nulls(value: Any) -> Any:
    """An answer without the fields that it leaves out, which are null in its column."""
    if isinstance(value, Mapping):
        return {name: drop_nulls(part) for name, part in value.items() if part is not None}
    return [drop_nulls(part) for part in value] if isinstance(value, list) else value


NEXT_STEPS = """
The answers: {place}/answers/*/data/*/*.parquet, for instance
  SELECT id, answer.number, answer.total FROM '{place}/answers/invoice/data/*/*.parquet'
Look at them: {python} -m pipeline report {place}/answers/detect
These models know drawn scenes only; of a photograph they say something well formed and wrong. Next, a real one:
  {python} -m pipeline run jobs/caption.yaml --set input.manifest=./my-pictures --limit 20"""
