"""The steps, in order of value, each in a process of its own with a limit of time.

A step that hangs, crashes or fails does not stop the next. The parent imports what all steps need and never touches the
device, so a forked step starts at once.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.gpu.bench import Bench, StepReport

SPARE_SECONDS = 3.0  # of a limit: before them a step that adapts to its time ends by itself
TOY_PATIENCE = 10  # times the limits, because a rehearsal shares its processor with others


@dataclass(frozen=True)
class Step:
    name: str
    module: str
    limit_s: float
    least_s: float = 8.0  # it does not start with less
    arguments: tuple[str, ...] = ()


STEPS = (
    Step("smoke", "tests.gpu.smoke", 30),
    Step("signatures", "tests.gpu.signatures", 60),
    Step("parity", "tests.gpu.parity", 110),
    Step("quantized", "tests.gpu.quantized", 45),
    Step("memory", "tests.gpu.memory_plan", 45),
    Step("ceilings", "tests.gpu.ceilings", 20),
    Step("speed-3b", "tests.gpu.speed", 90, 25, ("3b",)),
    Step("speed-7b", "tests.gpu.speed", 100, 30, ("7b",)),
    Step("profile", "tests.gpu.kernel_profile", 40, 15),
    Step("speed-8b", "tests.gpu.speed", 100, 30, ("8b",)),
    Step("speed-30b-a3b", "tests.gpu.speed", 110, 40, ("30b-a3b",)),
    Step("speed-9b", "tests.gpu.speed", 110, 30, ("9b",)),
)


@dataclass(frozen=True)
class Settings:
    device: str
    is_toy: bool
    out: Path


def select_steps(words: list[str]) -> list[Step]:
    """Those that have one of these names, or begin with one: `speed` is all of `speed-...`."""
    for word in words:
        if not any(step.name == word or step.name.startswith(f"{word}-") for step in STEPS):
            raise SystemExit(f"--only {word}: known are {', '.join(step.name for step in STEPS)}")
    return [
        step
        for step in STEPS
        if not words or any(step.name == word or step.name.startswith(f"{word}-") for word in words)
    ]


def run_step(step: Step, settings: Settings, limit_s: float) -> dict[str, Any]:
    """Run a step in this process. Its report says whatever went wrong."""
    report = StepReport(step.name, settings.out / f"{step.name}.json")
    error = ""
    with tempfile.TemporaryDirectory() as folder:
        deadline = time.monotonic() + limit_s - SPARE_SECONDS
        bench = Bench(torch.device(settings.device), settings.is_toy, Path(folder), report, deadline)
        try:
            importlib.import_module(step.module).run(bench, *step.arguments)
        except Exception as failure:
            traceback.print_exc()
            error = f"{type(failure).__name__}: {failure}"
    report.finish(error)
    return report.values


def run_in_own_process(step: Step, settings: Settings, limit_s: float) -> dict[str, Any]:
    path = settings.out / f"{step.name}.json"
    path.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        become_child(step, settings, limit_s)
    status = wait_for_child(child, started + limit_s)
    values: dict[str, Any] = {"step": step.name, "checks": [], "figures": {}, "rows": []}
    if path.exists():
        values = json.loads(path.read_text())
    if values.get("status", "running") == "running":  # it could not end its report
        values["seconds"] = round(time.monotonic() - started, 2)
        values["status"] = "out of time" if status is None else "crashed"
        values["error"] = f"killed after {limit_s:.0f} s" if status is None else describe_end(status)
        path.write_text(json.dumps(values, indent=1) + "\n")
    return values


def become_child(step: Step, settings: Settings, limit_s: float) -> None:
    """In the forked child; never returns. What it prints goes to a log."""
    os.setsid()
    log = os.open(settings.out / f"{step.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if torch.cuda._is_in_bad_fork():  # some library touched the device in the parent
        words = ["--child", step.name, "--device", settings.device, "--out", str(settings.out), "--budget"]
        words += [str(limit_s), *(["--toy"] if settings.is_toy else [])]
        os.execv(sys.executable, [sys.executable, "-m", "tests.gpu", *words])
    code = 1
    try:
        code = int(run_step(step, settings, limit_s)["status"] != "passed")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait_for_child(child: int, deadline: float) -> int | None:
    """Its wait status, or None where it had to be killed for its time. What it started ends with it."""
    status = None
    while time.monotonic() < deadline:
        ended, wait_status = os.waitpid(child, os.WNOHANG)
        if ended:
            status = wait_status
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return status


def describe_end(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
