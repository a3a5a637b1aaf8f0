"""Seconds from the command to the first answer on disk, against importing torch and transformers and starting Ray.

The job is one chunk of pictures on the built-in model. Both sides are commands, run in turns. Beside them each part of
the start is timed alone in a fresh process; in a run several parts share the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pipeline.builtin import scene_files
from tests.bench import harness

ROOT = Path(__file__).parents[2]
JOB = """
name: bench
input: {manifest: PLACE/manifest.parquet, id: id, media: media}
prompt: {user: "Describe what there is to see."}
model: {weights: "builtin:tiny"}
answer: {schema: caption, max_new_tokens: 64}
output: {path: PLACE/out}
"""
FLOOR = """
import torch
from pipeline.model import library
library.model_class("qwen2_5_vl")
import ray
ray.init(address="local", include_dashboard=False, log_to_driver=False)
"""
PIECES = """
import json, sys, time
marks, at = {}, time.monotonic()
def mark(name):
    global at
    marks[name], at = time.monotonic() - at, time.monotonic()
from pipeline.run import drive
mark("import the pipeline")
from pipeline import jobfile
from pipeline.manifest.chunks import files
from pipeline.run import brief
job = jobfile.load(sys.argv[1])
found = files(job)
work = brief.work(job, found)
brief.problems(work, found)
mark("read and check the job")
import ray.data
from pipeline.run import cluster, workers
mark("import Ray")
import torch
mark("import torch")
from pipeline.model import library
library.model_class("qwen2_5_vl")
mark("import transformers")
from pipeline.prepare import Answerer
Answerer(work)
mark("load the model")
with cluster.joined():
    mark("start Ray")
print(json.dumps(marks))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def python(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, check=True, text=True)
    return done.stdout


def first_answer(place: Path) -> tuple[float, float]:
    """Seconds until the first answer and until the end of the command."""
    out = place / "out"
    out.rename(place / str(time.time())) if out.exists() else None
    started = time.monotonic()
    command = [sys.executable, "-m", "pipeline", "run", str(place / "job.yaml")]
    running = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    while not list(out.glob("data/*/*.parquet")):
        assert running.poll() is None, "it ended without an answer"
        time.sleep(0.02)
    first = time.monotonic() - started
    assert running.wait() == 0
    return first, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    floors, firsts, wholes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        scene_files.write_scene_files(place, "caption", 8, first_scene=100_000)
        (place / "job.yaml").write_text(JOB.replace("PLACE", folder))
        pieces = json.loads(python("-c", PIECES, str(place / "job.yaml")).splitlines()[-1])
        for turn in range(2 if options.quick else options.rounds):
            floors.append(harness.seconds(lambda: python("-c", FLOOR)))
            first, whole = first_answer(place)
            firsts.append(first)
            wholes.append(whole)
            print(f"  round {turn + 1}: first answer {first:.1f} s, floor {floors[-1]:.1f} s", file=sys.stderr)
    figures = {"first_s": median(firsts), "whole_s": median(wholes), "floor_s": median(floors)}
    names = ["first answer", "end of the command", "import torch and transformers, start Ray"]
    print(harness.table(["from the command on", "seconds"], list(zip(names, figures.values(), strict=True))))
    print("\n" + harness.table(["piece, alone", "seconds"], list(pieces.items())))
    harness.report(
        "start",
        ratios={"first/floor": figures["first_s"] / figures["floor_s"]},
        figures=figures | pieces,
        where=harness.machine("ray", "torch", "transformers"),
    )


if __name__ == "__main__":
    main()
