"""What a step of the ladder is told, and the report that it writes as it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.engines.gpu_stand_ins import stand_in_for_gpu


class StepReport:
    """Its file is written anew after every entry, so a step that hangs or crashes leaves what it found."""

    def __init__(self, step_name: str, path: Path):
        self.path = path
        self.started = time.monotonic()
        self.values: dict[str, Any] = {"step": step_name, "status": "running", "seconds": 0.0}
        self.values |= {"checks": [], "figures": {}, "rows": []}
        self.write()

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        self.values["checks"].append({"name": name, "passed": bool(passed), "detail": detail})
        self.write()

    def check_at_most(self, name: str, value: float, limit: float) -> None:
        self.check(name, value <= limit, f"{value:.4g}, at most {limit:.4g}")  # false for what is not a number

    def figure(self, name: str, value: float | str) -> None:
        self.values["figures"][name] = value
        self.write()

    def add_row(self, row: dict[str, Any]) -> None:
        """A row for the table of measured speeds that `plan` reads."""
        self.values["rows"].append(row)
        self.write()

    def finish(self, error: str = "") -> None:
        failed = [check["name"] for check in self.values["checks"] if not check["passed"]]
        self.values["status"] = "failed" if error or failed or not self.has_result() else "passed"
        self.values["error"] = error
        self.write()

    def has_result(self) -> bool:
        return bool(self.values["checks"] or self.values["figures"])

    def write(self) -> None:
        self.values["seconds"] = round(time.monotonic() - self.started, 2)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1) + "\n")
        part.replace(self.path)


@dataclass(frozen=True)
class Bench:
    device: torch.device
    is_toy: bool
    folder: Path  # for checkpoints
    report: StepReport
    deadline: float  # by time.monotonic()

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @contextmanager
    def stand_ins(self) -> Iterator[None]:
        """Inside, engines on a CPU go the way of those on a card."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            if not self.is_cuda:
                stand_in_for_gpu(monkeypatch)
            yield

    def has_time(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self.deadline
