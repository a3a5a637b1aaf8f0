"""A rank that runs out of memory in its third step; the other ranks do not."""

import sys
from itertools import count

import torch

from pipeline.model.engines.torch import tp_worker
from pipeline.model.engines.torch.step_runner import StepRunner

if __name__ == "__main__":
    run_step, calls = StepRunner.run_step, count()

    def run_within_memory(self, *arguments):
        if next(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_step(self, *arguments)

    StepRunner.run_step = run_within_memory
    tp_worker.FAILURE_GRACE_S = 1
    tp_worker.main(*map(int, sys.argv[1:4]))
