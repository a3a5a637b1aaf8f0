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
from pipeline.model import hf_models
hf_models.get_model_class("qwen2_5_vl")
import ray
ray.init(address="local", include_dashboard=False, log_to_driver=False)
"""
PARTS = """
import json, sys, time
marks, at = {}, time.monotonic()
def mark(name):
    global at
    marks[name], at = time.monotonic() - at, time.monotonic()
from pipeline.run import driver
mark("import the pipeline")
from pipeline.job.job_loader import load_job
from pipeline.manifest.files import list_manifest_files
from pipeline.run import preflight
job = load_job(sys.argv[1])
manifest_files = list_manifest_files(job)
context = preflight.build_run_context(job, manifest_files)
preflight.find_job_problems(context, manifest_files)
mark("read and check the job")
from pipeline.cluster import ray_runner, ray_session, workers
mark("import Ray")
import torch
mark("import torch")
from pipeline.model import hf_models
hf_models.get_model_class("qwen2_5_vl")
mark("import transformers")
from pipeline.answer import Answerer
Answerer(context)
mark("load the model")
with ray_session.connect_to_ray():
    mark("start Ray")
print(json.dumps(marks))
"""


def build_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def run_python(*arguments: str) -> str:
    process = subprocess.run(
        [sys.executable, *arguments], env=build_environment(), capture_output=True, check=True, text=True
    )
    return process.stdout


def measure_first_answer(folder: Path) -> tuple[float, float]:
    """Seconds until the first answer and until the end of the command."""
    output = folder / "out"
    output.rename(folder / str(time.time())) if output.exists() else None
    started = time.monotonic()
    command = [sys.executable, "-m", "pipeline", "run", str(folder / "job.yaml")]
    running = subprocess.Popen(command, env=build_environment(), stderr=subprocess.DEVNULL)
    while not list(output.glob("data/*/*.parquet")):
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
        data_folder = Path(folder)
        scene_files.write_scene_files(data_folder, "caption", 8, first_scene=100_000)
        (data_folder / "job.yaml").write_text(JOB.replace("PLACE", folder))
        part_seconds = json.loads(run_python("-c", PARTS, str(data_folder / "job.yaml")).splitlines()[-1])
        for turn in range(2 if options.quick else options.rounds):
            floors.append(harness.measure_seconds(lambda: run_python("-c", FLOOR)))
            first, whole = measure_first_answer(data_folder)
            firsts.append(first)
            wholes.append(whole)
            print(f"  round {turn + 1}: first answer {first:.1f} s, floor {floors[-1]:.1f} s", file=sys.stderr)
    figures = {"first_s": median(firsts), "whole_s": median(wholes), "floor_s": median(floors)}
    names = ["first answer", "end of the command", "import torch and transformers, start Ray"]
    print(harness.format_table(["until", "seconds"], list(zip(names, figures.values(), strict=True))))
    print("\n" + harness.format_table(["part, timed alone", "seconds"], list(part_seconds.items())))
    harness.print_report(
        "start",
        ratios={"first/floor": figures["first_s"] / figures["floor_s"]},
        figures=figures | part_seconds,
        where=harness.describe_machine("ray", "torch", "transformers"),
    )


if __name__ == "__main__":
    main()
