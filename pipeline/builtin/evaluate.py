"""The accuracy of the built-in models: python -m pipeline.builtin.evaluate [--scenes N] [--tasks detect,video]

Scenes that training never drew go through the whole pipeline, from files to Parquet, with the jobs in jobs/demo and
the grammar off. The answers are scored against the drawn truth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from pipeline.builtin import scene_files, scores
from pipeline.job import job_loader
from pipeline.run import driver

TASKS = ("caption", "classify", "detect", "invoice", "video")
JOBS_FOLDER = Path(__file__).parents[2] / "jobs" / "demo"


def evaluate_task(
    folder: Path, task: str, scene_count: int, *, changes: Sequence[str] = (), first_scene: int = 0
) -> dict[str, float]:
    """Draw scenes, run the job of a task over them, and score the answers."""
    manifest = scene_files.write_scene_files(folder / task, task, scene_count, first_scene=first_scene)
    run_task(task, folder, ["answer.guided=false", "limits.error_rate=1", *changes], runner="local")
    return scores.score_answers(task, read_answers_and_truths(manifest, folder / "answers" / task))


def run_task(task: str, folder: Path, changes: Sequence[str], *, runner: str) -> int:
    where = [f"input.manifest={folder / task / 'manifest.parquet'}", f"output.path={folder / 'answers' / task}"]
    job = job_loader.load_job(JOBS_FOLDER / f"{task}.yaml", changes=[*where, *changes])
    return driver.run_job(job, driver.RunOptions(runner=runner), say=lambda line: None)


def read_answers_and_truths(manifest: Path, output: Path) -> list[tuple[Any, Any]]:
    """(answer, truth) of every row; a failed row has the answer None."""
    answers = {}
    if (output / "data").exists():
        answered_rows = ds.dataset(output / "data").to_table(["id", "answer"]).to_pylist()
        answers = {row["id"]: row["answer"] for row in answered_rows}
    rows = ds.dataset(manifest).to_table(["id", "truth"]).to_pylist()
    return [(answers.get(row["id"]), json.loads(row["truth"])) for row in rows]


def format_figures(figures: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        f"  {task:8} " + "   ".join(f"{name} {value:.3f}" for name, value in scores.items())
        for task, scores in figures.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.builtin.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=500, help="scenes of each task")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--weights", help="evaluate this checkpoint instead of the one in the jobs")
    options = parser.parse_args()
    changes = [f"model.weights={options.weights}"] if options.weights else []
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            task: evaluate_task(Path(folder), task, options.scenes, changes=changes)
            for task in options.tasks.split(",")
        }
    print(f"{options.scenes} unseen scenes of each task, grammar off; shares and means, 1 is best")
    print(format_figures(figures))
    flat = {f"{task} {name}": round(value, 4) for task, values in figures.items() for name, value in values.items()}
    print(json.dumps({"name": "tiny", "ratios": {}, "figures": flat}))


if __name__ == "__main__":
    main()
