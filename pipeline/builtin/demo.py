"""The demo: draw pictures, videos and invoices, run five jobs over them through Ray, and score the answers.

Everything is real, only small: the jobs in jobs/demo, the built-in models, unseen scenes, Parquet.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.builtin import scene_files, scores
from pipeline.builtin.evaluate import TASKS, format_figures, read_answers_and_truths, run_task
from pipeline.cluster.ray_session import connect_to_ray
from pipeline.command_text import format_command
from pipeline.errors import OutputError

SCENES_PER_TASK = 16
FIRST_SCENE = 100_000  # evaluation uses lower numbers
SHOWN_TASKS = ("caption", "detect", "video")


def run_demo(folder: str) -> int:
    root, started = Path(folder), time.monotonic()
    try:
        for task in TASKS:
            scene_files.write_scene_files(root / task, task, SCENES_PER_TASK, first_scene=FIRST_SCENE)
            shutil.rmtree(root / "answers" / task, ignore_errors=True)  # a second demo would have nothing to do
    except OSError as error:
        raise OutputError(f"{root}: cannot be written: {error.strerror}; name another folder") from error
    print(f"Drawn: {SCENES_PER_TASK} scenes for each of {len(TASKS)} tasks, in {root}")
    print("Running jobs/demo/*.yaml on Ray:", flush=True)
    codes, pairs = [], {}
    with connect_to_ray():
        for task in TASKS:
            print(f"  {task} ...", end="", flush=True)
            codes.append(run_task(task, root, [], runner="ray"))
            pairs[task] = read_answers_and_truths(root / task / "manifest.parquet", root / "answers" / task)
            print(f" done after {time.monotonic() - started:.0f} s", flush=True)
    print("\nAnswers against the truth (1 is best):")
    print(format_figures({task: scores.score_answers(task, pairs[task]) for task in TASKS}))
    for task in SHOWN_TASKS:
        print(format_example(task, root, *pairs[task][0]))
    report = format_command("report", f"{root}/answers/detect", "--roots", str(root))
    print(NEXT_STEPS.format(folder=root, report=report, init=format_command("init")))
    return max(codes)


def format_example(task: str, folder: Path, answer: Mapping[str, Any] | None, truth: Mapping[str, Any]) -> str:
    """The path, the answer and the truth of one scene."""
    path = next((folder / task).glob(f"{FIRST_SCENE:05}.*"))
    return f"\n{path}\n  answer {json.dumps(drop_nulls(answer), default=str)}\n  truth  {json.dumps(truth)}"


def drop_nulls(value: Any) -> Any:
    """The answer without null fields: a column of structs has every field in every row."""
    if isinstance(value, Mapping):
        return {name: drop_nulls(part) for name, part in value.items() if part is not None}
    return [drop_nulls(part) for part in value] if isinstance(value, list) else value


NEXT_STEPS = """
The answers are Parquet files, for instance:
  SELECT id, answer.total FROM '{folder}/answers/invoice/data/*/*.parquet'
Look at some beside their pictures:
  {report}
These models know only drawn scenes. About a photograph they say something well
formed and wrong. Write a job for pictures of your own and a real model:
  {init}"""
