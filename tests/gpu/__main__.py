"""Everything that only a GPU can show, with one command in less than eight minutes.

    make gpu                                          on a machine that is set up
    make gpu ARGS="--device cpu --toy"                a rehearsal without a GPU
    python3 -m tests.gpu [--only STEP ...]            on a bare machine: tests/bench/gpu.md says what to carry

Each step writes its result at once to `out/gpu`, or to the folder in `$OUT`. `summary.md` and `summary.json` there hold
all that is known so far. A step that fails does not stop the next; the exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.model import hf_models
from tests.gpu import ladder, summary
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES

RESERVE_SECONDS = 5.0  # of the budget, for the end


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: a rehearsal in less than a minute")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="this step; may be repeated")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out/gpu")))
    parser.add_argument(
        "--budget", type=float, default=465.0, help="seconds for all steps; ten times as many for --toy"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> int:
    started = time.monotonic()
    options = parse_arguments()
    if options.device == "cpu" and not options.toy:
        raise SystemExit("--device cpu needs --toy: real sizes would take days")
    options.out.mkdir(parents=True, exist_ok=True)
    settings = ladder.Settings(options.device, options.toy, options.out)
    if options.child:
        step = next(step for step in ladder.STEPS if step.name == options.child)
        return int(ladder.run_step(step, settings, options.budget)["status"] != "passed")
    steps = ladder.select_steps(options.only)
    for model_type in FAMILIES + HYBRID_FAMILIES:
        hf_models.get_model_class(model_type)  # imported once, for all steps
    patience = ladder.TOY_PATIENCE if options.toy else 1
    results: list[dict[str, Any]] = []
    for step in steps:
        left = started + patience * options.budget - RESERVE_SECONDS - time.monotonic()
        if left < step.least_s:
            result = {"step": step.name, "status": "no time", "checks": [], "figures": {}, "rows": []}
        else:
            result = ladder.run_in_own_process(step, settings, min(patience * step.limit_s, left))
        results.append(result)
        print(
            f"{step.name:<14} {result['status']:<12} {result.get('seconds', 0.0):6.1f} s  {result.get('error') or ''}"
        )
        seconds = time.monotonic() - started
        text = summary.write_summary(options.out, results, seconds=seconds, is_rehearsal=options.device == "cpu")
        if not options.toy:  # read by `plan`; the second copy is for a machine from which only the folder comes back
            summary.write_measured_speeds([summary.MEASURED, options.out / "measured.json"], results)
    print(f"\n{text}\nall of it is in {options.out}/")
    return int(any(result["status"] not in ("passed", "no time") for result in results))


if __name__ == "__main__":
    sys.exit(main())
