"""A replica of two ranks that ends in the way that it is told: `python -m ... FOLDER WAY`, with a checkpoint in it."""

import os
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch

from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import worker_group
from pipeline.model.engines.torch.engine import TorchEngine
from tests.model.engines.conftest import build_request


def say(*words: object) -> None:
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def open_engine(folder: Path, *, hang_s: float = 300) -> TorchEngine:
    sizes = {"slots": 2, "kv_tokens": 300, "hang_s": hang_s}
    return TorchEngine(folder, family_loader.load_family(folder), device="cpu", tensor_parallel=2, **sizes)


def main(folder: Path, way: str) -> None:
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    worker_group.FAILURE_GRACE_S = 1
    if way == "memory-of-another":
        worker_group.WORKER_MODULE = "tests.model.engines.rank_without_memory"
    engine = open_engine(folder / "model", hang_s=3 if way == "stopped" else 300)
    say(engine.vision_cache.collectives.worker_group.processes[0].pid)
    if way in ("alone", "memory"):
        run_step, calls = engine.step_runner.run_step, count()
        error = RuntimeError("only here") if way == "alone" else torch.OutOfMemoryError("CUDA out of memory")

        def failing(*arguments):
            if next(calls) > 3:
                raise error
            return run_step(*arguments)

        engine.step_runner.run_step = failing
    family = engine.sequence_builder.family
    for answer in generate_replies(engine, (build_request(family, str(number), "hello") for number in count())):
        say(answer.id)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
