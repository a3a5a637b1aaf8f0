"""What some rows do to the process that works on them: loaded into every worker of a Ray session by `install`."""

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
ROW_S, DEADLINE_S = 20.0, 30.0  # after which a row that is prepared ends its process; what the job gives it


def harm(name: str) -> None:
    if name.endswith("segfault"):
        ctypes.string_at(0)
    if name.endswith("memory"):  # as the kernel ends what takes too much of it
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith("hang"):
        time.sleep(600)


class Hostile(ScriptedEngine):
    """The scripted engine with the watchdog of the real one; rows named engine-... do harm; so may a start."""

    def step(self):
        if not hasattr(self, "watchdog"):
            self.watchdog = Watchdog(HANG_S)
        with self.watchdog:
            return super().step()

    def build_reply(self, request: Request):
        if request.id.startswith("engine-"):
            harm(request.id)
        return super().build_reply(request)


class HostileEngineType(ScriptedEngineType):
    def open(self, job):
        harm(job.engine.default)
        return Hostile(job.engine)


def install() -> None:
    registry.ENGINES["scripted"] = "tests.cluster.hostile:HostileEngineType"
    ask = prepare.Preparer.build_request

    def hostile(self, item):
        if item.id.startswith("prepare-"):
            harm(item.id)
        return ask(self, item)

    prepare.Preparer.build_request = hostile
    start = prepare.Preparer.__init__

    def starting(self, work):
        if work.job.engine.default == "no preparer":
            raise PipelineError("there is no tokenizer on this node")
        start(self, work)

    prepare.Preparer.__init__ = starting
    workers.compute_row_timeout_s = lambda job: ROW_S - workers.HANG_MARGIN_S
