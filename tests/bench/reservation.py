"""What it is worth to reserve the expected answer in the KV cache in place of the longest, with our engine.

    python tests/bench/reservation.py [--rows 200] [--kv-tokens 24000] [--budget 4096]

Rows may answer 4096 tokens and answer 100 to 400; the weights are random, in the shape of the built-in models. `whole`
reserves the budget of each row, as the engine did before. Seconds are of the processor, and each side is a new engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.sequence import SequenceState
from pipeline.model.families.base import Family
from pipeline.types import Request, Sampling, Turn
from tests.bench import harness
from tests.bench.engine import SHAPES, never_stop


def build_requests(family: Family, rows: int, budget: int) -> list[Request]:
    rng = np.random.default_rng(3)
    requests = []
    for row in range(rows):
        turns = (Turn("user", (f"{row}: " + "say " * int(rng.integers(100, 300)),)),)
        encoded = family.encode_turns(turns)
        sampling = Sampling(max_new_tokens=budget)
        requests.append(Request(str(row), turns, encoded.input_ids, encoded.positions, 0, sampling))
    return requests


def answer_all(engine: TorchEngine, requests: list[Request]) -> dict[str, float]:
    """Answers end after 100 to 400 tokens, which the engine does not know."""
    build_sequence, lengths = engine.sequence_builder.build_sequence, np.random.default_rng(4)
    rows_per_step: list[int] = []

    def build_shorter(request: Request) -> SequenceState:
        sequence = build_sequence(request)
        sequence.max_new_tokens = int(lengths.integers(100, 401))  # the arrays behind it keep their size
        return sequence

    def run_and_count(batch: Any, *unread: Any) -> Any:
        if engine.scheduler.waiting:  # at the end there are too few rows on either side
            rows_per_step.append(len(batch))
        return step_runner(batch, *unread)

    engine.sequence_builder.build_sequence = build_shorter  # type: ignore[method-assign]
    step_runner = engine.step_runner
    engine.step_runner = run_and_count  # type: ignore[assignment]
    start = time.process_time()
    tokens = sum(reply.output_tokens for reply in generate_replies(engine, requests))  # type: ignore[union-attr]
    seconds = time.process_time() - start
    counts = engine.metrics()
    needed = counts["prompt_tokens"] + tokens - len(requests)
    return {
        "rows per step": float(np.mean(rows_per_step)),
        "most rows": max(rows_per_step),
        "steps": counts["steps"],
        "rows/s": len(requests) / seconds,
        "computed / needed": (counts["tokens_computed"] + counts["tokens_copied"]) / needed,
        "moved": counts["moved_runs"],
        "displaced": counts["displaced_runs"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--kv-tokens", type=int, default=24_000)
    parser.add_argument("--budget", type=int, default=4096)
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    options = parser.parse_args()
    rows = 80 if options.quick else options.rows
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_random_checkpoint(Path(name), "qwen2_5_vl", **SHAPES["builtin"])
        family = family_loader.load_family(folder)
        requests = build_requests(family, rows, options.budget)
        for side in ("whole", "expected"):
            engine = TorchEngine(folder, family, device="cpu", kv_tokens=options.kv_tokens)
            never_stop(engine)
            if side == "whole":
                engine.scheduler.count_reserved = lambda sequence: sequence.max_tokens  # type: ignore[method-assign]
            results[side] = answer_all(engine, requests)
            engine.close()
    names = list(results["whole"])
    print(harness.format_table(["", *results], [[name, *(side[name] for side in results.values())] for name in names]))
    ratios = {name: results["expected"][name] / results["whole"][name] for name in ("rows per step", "rows/s")}
    harness.print_report("reservation", ratios=ratios, figures={}, where=harness.describe_machine("torch"))


if __name__ == "__main__":
    main()
