"""Runs jobs with one row that crashes its process: `python -m tests.chaos.poison [--rows N] [CRASH ...]`

Each kind of crash gets a job of 500 rows. Prints how many rows were answered, what the one dead letter says, and how
long the job took.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import harness
from tests.cluster.crashing_rows import DEADLINE_S
from tests.small_ray import start_small_ray
from tests.workspace import JobWorkspace

CRASHES = [f"{place}-{cause}" for place in ("engine", "prepare") for cause in ("segfault", "hang", "memory")]

HEADER = ["row", "answered", "dead letter", "the last process said", "seconds"]


@contextmanager
def hostile_ray() -> Iterator[Path]:
    """Start Ray with workers that some rows crash. Yields a folder for the test."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")
    hook = "tests.cluster.crashing_rows.install"
    path = str(Path(__file__).parents[2])  # where workers find the hook
    with start_small_ray({"worker_process_setup_hook": hook, "env_vars": {"PYTHONPATH": path}}) as folder:
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crashes", nargs="*", default=CRASHES)
    parser.add_argument("--rows", type=int, default=500)
    options = parser.parse_args()
    lines = []
    with hostile_ray() as folder:
        workspace = JobWorkspace(folder)
        for crash in options.crashes:
            rows = workspace.draw_images(options.rows)
            rows[options.rows // 2]["id"] = crash
            workspace.write_manifest(rows)
            started = time.monotonic()
            output = {"path": str(folder / crash), "chunk_rows": 64}
            code = workspace.run_job(runner="ray", output=output, limits={"deadline_s": DEADLINE_S})
            (letter,) = workspace.read_dead_letters(crash)
            answered = set(workspace.list_answered_ids(crash))
            assert (code, len(workspace.list_answered_ids(crash))) == (3, options.rows - 1)
            assert answered | {letter["id"]} == {row["id"] for row in rows}
            reason = letter["message"].partition("The last one said: ")[2].partition(". Look")[0]
            lines.append(
                [crash, len(answered), f"{letter['stage']}/{letter['kind']}", reason, time.monotonic() - started]
            )
            print(harness.format_table(HEADER, lines[-1:]))
    print(harness.format_table(HEADER, lines))


if __name__ == "__main__":
    main()
