"""Rows that crash the process that works on them. `install` patches every worker of a Ray session."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import signal
import time
from pathlib import Path
from typing import IO

from pipeline import prepare, registry
from pipeline.cluster import crash_ledger, workers
from pipeline.errors import PipelineError
from pipeline.model.engines.scripted import ScriptedEngine, ScriptedEngineType
from pipeline.types import Request
from pipeline.watchdog import Watchdog

HANG_S = 3.0
ROW_S = 20.0  # a row that takes longer to prepare ends its process
DEADLINE_S = 30.0  # of the job
STARTS_OF_TWO_REPLICAS = 1 + crash_ledger.MAX_CRASHES + 1
files_in_use: list[IO[str]] = []  # locked for the life of the process


def crash_process(name: str) -> None:
    if name.endswith("segfault"):
        ctypes.string_at(0)
    if name.endswith("memory"):  # like the kernel when memory runs out
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith("hang"):
        time.sleep(600)


class CrashingEngine(ScriptedEngine):
    """The scripted engine with the watchdog of the real one. Rows named engine-... crash it; so may its start."""

    def step(self):
        if not hasattr(self, "watchdog"):
            self.watchdog = Watchdog(HANG_S)
        with self.watchdog:
            return super().step()

    def build_reply(self, request: Request):
        if request.id.startswith("engine-"):
            crash_process(request.id)
        return super().build_reply(request)


class CrashingEngineType(ScriptedEngineType):
    def open(self, job):
        crash_process(job.engine.default)
        if job.engine.default == "one works":
            take_only_gpu(Path(job.output.path).parent)
        return CrashingEngine(job.engine)


def take_only_gpu(folder: Path) -> None:
    """Die like a process whose GPU is broken, unless this is the only process that has the lock.

    The process that has it waits until the other replica has died three times and has been started once more.
    """
    file = (folder / "gpu").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RuntimeError("CUDA error: an illegal memory access was encountered") from None
    files_in_use.append(file)
    while (folder / "starts").stat().st_size < STARTS_OF_TWO_REPLICAS:
        time.sleep(0.1)


def install() -> None:
    registry.ENGINES["scripted"] = "tests.cluster.crashing_rows:CrashingEngineType"
    build_request = prepare.Preparer.build_request

    def build_request_or_crash(self, item):
        if item.id.startswith("prepare-"):
            crash_process(item.id)
        return build_request(self, item)

    prepare.Preparer.build_request = build_request_or_crash
    init = prepare.Preparer.__init__

    def init_or_fail(self, context):
        if context.job.engine.default == "no preparer":
            raise PipelineError("there is no tokenizer on this node")
        init(self, context)

    prepare.Preparer.__init__ = init_or_fail
    init_worker = workers.GenerateWorker.__init__

    def count_and_init(self, context, *arguments):
        with (Path(context.job.output.path).parent / "starts").open("a") as file:
            file.write(".")
        init_worker(self, context, *arguments)

    workers.GenerateWorker.__init__ = count_and_init
    generate_slices = workers.GenerateWorker.generate_slices

    @functools.wraps(generate_slices)
    def count_and_generate(self, prepared):
        with (Path(self.dataset.store.root).parent / "tasks").open("a") as file:
            file.write(f"{len(prepared)}\n")
        return generate_slices(self, prepared)

    workers.GenerateWorker.generate_slices = count_and_generate
    workers.compute_row_timeout_s = lambda job: ROW_S - workers.HANG_MARGIN_S
