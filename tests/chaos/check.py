"""Checks what must hold after every kill, and what must hold at the end of a run."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

from tests.chaos.environment import DECODER, GENERATE, PREPARE, RANK, ChaosEnvironment

EXIT_TIMEOUT_S = 60.0  # processes take long to end on a loaded machine


def read_part(environment: ChaosEnvironment, path: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the rows and the commit's metadata. Fails if the object is incomplete."""
    table = pq.read_table(io.BytesIO(environment.store.cat_file(path)))
    return table.to_pylist(), json.loads(table.schema.metadata[b"vlbatch"])


def count_ids(environment: ChaosEnvironment) -> tuple[Counter[str], Counter[str]]:
    """Count each id in data/, and in the dead letters of committed parts."""
    answered, failed = Counter[str](), Counter[str]()
    for path in environment.list_parts():
        rows, metadata = read_part(environment, path)
        answered.update(row["id"] for row in rows)
        if metadata["errors"]:
            letters_path = path.replace("/data/", "/errors/").rpartition("/")[0] + "/" + metadata["errors"]
            failed.update(row["id"] for row in read_part(environment, letters_path)[0])
    return answered, failed


def check_committed_rows(environment: ChaosEnvironment) -> None:
    answered, failed = count_ids(environment)
    repeated = {row_id: count for row_id, count in (answered + failed).items() if count > 1}
    assert not repeated, f"committed more than once: {repeated}"
    assert set(answered) | set(failed) <= environment.ids
    healthy_failed = set(failed) - environment.broken_ids
    assert not healthy_failed, f"rows failed although their pictures can be read: {healthy_failed}"


def check_finished_run(environment: ChaosEnvironment) -> None:
    """Every row is there once, in data/ or in errors/. No temporary file and no process is left."""
    check_committed_rows(environment)
    answered, failed = count_ids(environment)
    healthy_ids = environment.ids - environment.broken_ids
    assert set(answered) == healthy_ids, f"not answered: {healthy_ids - set(answered)}"
    assert set(failed) == environment.broken_ids
    assert not [name for name in environment.store.find(environment.output) if ".tmp" in name]
    for title in (PREPARE, GENERATE, RANK, DECODER):
        wait_until(EXIT_TIMEOUT_S, lambda: not environment.list_workers(title), f"still running: {title}")  # noqa: B023


def wait_until(timeout_s: float, is_reached: Callable[[], object], message: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_reached():
        assert time.monotonic() < deadline, message
        time.sleep(0.2)
