"""What computing shared prefixes once is worth, with our engine on random weights.

    python tests/bench/prefixes.py [--rows 64] [--rounds 3] [--shape builtin|small_7b] [--sides 16 24]

Each workload is answered with and without `engine.reuse_prefixes`, in turns, by a new engine each time. `examples`:
four pictures with their answers stand before each row's own. `questions`: eight rows ask about one picture. `unshared`:
every row has a picture of its own, and only the system prompt in common. Pictures have 16 to 24 tokens of 28 px a
side, or what `--sides` says; answers have 8 tokens. In shape `builtin` the vision tower does more of the work than the
language model; `small_7b` divides it nearly as Qwen2.5-VL-7B does. Seconds are of the processor. Features of pictures
were shared before prefixes were, so both sides encode a picture once as long as rows need it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.families.base import Family
from pipeline.types import Clip, Request, Sampling, Turn
from tests.bench import harness
from tests.bench.engine import SHAPES

EXAMPLES, QUESTIONS = 4, 8
SIDES = (16, 24)  # fewest and most tokens of a side of a picture


def build_requests(
    family: Family, workload: str, rows: int, sides: Sequence[int] = SIDES, *, seed: int = 3
) -> list[Request]:
    rng = np.random.default_rng(seed)
    side = family.patch_size * family.merge_size

    def make_picture() -> Clip:
        width, height = (int(tokens) * side for tokens in rng.integers(sides[0], sides[1] + 1, 2))
        return Clip("image", rng.integers(0, 256, (1, 3, height, width), dtype=np.uint8), (width, height))

    examples = [
        turn
        for number in range(EXAMPLES if workload == "examples" else 0)
        for turn in (
            Turn("user", (make_picture(), "Say what you see.")),
            Turn("assistant", (f"An example with the number {number}.",)),
        )
    ]
    requests, picture = [], make_picture()
    for row in range(rows):
        if workload != "questions" or row % QUESTIONS == 0:
            picture = make_picture()
        turns = (*examples, Turn("user", (picture, f"Say what you see. This is question {row % QUESTIONS}.")))
        encoded = family.encode_turns(turns)
        ids, positions = encoded.input_ids, encoded.positions
        requests.append(Request(str(row), turns, ids, positions, encoded.vision_tokens, Sampling(max_new_tokens=8)))
    return requests


def measure_workload(folder: Path, family: Family, requests: Sequence[Request], rounds: int) -> dict[bool, float]:
    """The median seconds of the processor, with and without reuse."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for reuse in seconds:
            engine = TorchEngine(folder, family, device="cpu", reuse_prefixes=reuse, kv_tokens=64 * 2048)
            engine.detokenizer = type(engine.detokenizer)(family.tokenizer, frozenset(), None, frozenset())
            start = time.process_time()
            assert sum(reply.output_tokens for reply in generate_replies(engine, requests)) == 8 * len(requests)  # type: ignore[union-attr]
            seconds[reuse].append(time.process_time() - start)
            engine.close()
    return {reuse: median(times) for reuse, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=("builtin", "small_7b"), default="builtin")
    parser.add_argument("--sides", type=int, nargs=2, default=SIDES, help="fewest and most tokens of a side")
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds = 32, 1
    torch.set_num_threads(1)
    lines, ratios = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_random_checkpoint(Path(name), "qwen2_5_vl", **SHAPES[options.shape])
        family = family_loader.load_family(folder)
        for workload in ("unshared", "examples", "questions"):
            requests = build_requests(family, workload, options.rows, options.sides)
            measure_workload(folder, family, requests[:8], rounds=1)  # warms up
            seconds = measure_workload(folder, family, requests, options.rounds)
            ratios[workload] = seconds[False] / seconds[True]
            lines.append([workload, *(options.rows / seconds[reuse] for reuse in (False, True)), ratios[workload]])
    print(harness.format_table(["workload", "rows/s of one core, each alone", "with reuse", "times"], lines))
    figures = {"rss_mib": psutil.Process().memory_info().rss / 2**20}
    harness.print_report("prefixes", ratios=ratios, figures=figures, where=harness.describe_machine("torch"))


if __name__ == "__main__":
    main()
