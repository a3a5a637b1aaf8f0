"""Rows that crash the process that works on them. `install` patches every worker of a Ray session."""

from __future__ import annotations

import ctypes
import os
import signal
import time

from pipeline import prepare, registry
from pipeline.cluster import workers
from pipeline.errors import PipelineError
from pipeline.model.engines.scripted import ScriptedEngine, ScriptedEngineType
from pipeline.types import Request
from pipeline.watchdog import Watchdog

HANG_S = 3.0
ROW_S = 20.0  # a row that takes longer to prepare ends its process
DEADLINE_S = 30.0  # of the job


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
        return CrashingEngine(job.engine)


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
    workers.compute_row_timeout_s = lambda job: ROW_S - workers.HANG_MARGIN_S
