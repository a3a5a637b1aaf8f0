"""Takes over runs at random moments: `python -m tests.chaos.takeover --moments 200 --seed 7`

Each trial is a new output and two runs, which cut the manifest into different chunks. At a random moment one of these
happens to the first run, and the second run takes its place:

    disk     the first run cannot list or write the output for 6 s: EIO
    pause    the first run is suspended, and wakes when the second one has ended
    late     the disk carries out the first run's next commit only when the second run has ended

In every other trial the first run works on one of two shards, and another run on the other one is killed meanwhile.
When all have ended, an export has every row once. After one more run `data/` has every row once, too.
"""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.__main__ import main as run_command
from pipeline.export.base import ExportOptions
from pipeline.export.export_job import export_job
from pipeline.inspect.status import read_status
from pipeline.job import job_loader
from tests.bench import harness

FAULTS = ("disk", "pause", "late")
ROWS, DELAY_MS = 24, 20  # the engine of a run works for half a second
FIRST_CHUNK_ROWS, OTHER_CHUNK_ROWS = 4, (3, 4, 5)
OUTAGE_S = 6.0
LONGEST_DELAY_S = 0.8  # from the lease of the first run until something happens to it
LEASE_S = "0.5"
TIMEOUT_S = 300.0
TRIALS_AT_ONCE = 4  # they mostly wait
STOPPED = 4
processes = multiprocessing.get_context("forkserver")  # imports everything once, not for every run
processes.set_forkserver_preload(["pipeline.run.driver", "pipeline.run.local", "pipeline.model.family_loader"])


@dataclass(frozen=True, slots=True)
class Trial:
    fault: str
    in_shards: bool
    taken_over: bool  # False: the first run had ended before
    repeated_rows: int  # in data/ when both runs had ended


class TakeoverTrial:
    """One folder with a job, its output and its exports."""

    def __init__(self, folder: Path, fault: str, rng: random.Random, *, in_shards: bool):
        self.folder, self.fault, self.rng, self.in_shards = folder, fault, rng, in_shards
        chat = [{"role": "user", "content": "Hello?"}]
        self.ids = [f"r{number:02}" for number in range(ROWS)]
        pq.write_table(pa.table({"id": self.ids, "chat": [chat] * ROWS}), folder / "m.parquet")
        job = {
            "name": "takeover",
            "input": {"manifest": str(folder / "m.parquet"), "id": "id", "messages": "chat"},
            "model": {"weights": "builtin:tiny"},
            "engine": {"kind": "scripted", "default": "seen {id}", "slots": 1, "delay_ms": DELAY_MS},
            "output": {"path": str(folder / "out"), "chunk_rows": FIRST_CHUNK_ROWS},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))

    def run(self) -> Trial:
        shards = ["--shard=1/2", "--shard=2/2"] if self.in_shards else []
        first = self.start_run("first", FIRST_CHUNK_ROWS, install_fault, *shards[:1])
        others = [self.start_run("other", FIRST_CHUNK_ROWS, None, shard) for shard in shards[1:]]
        self.wait_until(lambda: list(self.folder.glob("out/*lease/fp=*/*.json")), "the first run takes no lease")
        time.sleep(self.rng.uniform(0, LONGEST_DELAY_S))
        for other in others:
            other.kill()
        (self.folder / self.fault).touch()
        if self.fault == "pause":
            with suppress(ProcessLookupError):
                os.kill(first.pid, signal.SIGSTOP)
        if self.fault == "late":
            self.wait_until(lambda: (self.folder / "waiting").exists() or not first.is_alive(), "nothing is committed")
        take_over = ["--take-over"] if self.fault == "late" or self.rng.random() < 0.5 else []
        second = self.start_run("second", OTHER_CHUNK_ROWS[0], None, *take_over)
        self.require(self.wait_for(second) == 0, "the second run fails")
        (self.folder / "released").touch()
        if self.fault == "pause":
            with suppress(ProcessLookupError):
                os.kill(first.pid, signal.SIGCONT)
        first_code = self.wait_for(first)
        self.require(first_code in (0, STOPPED), f"the first run ends with {first_code}")
        repeated_rows = self.count_repeated_rows()
        status = read_status(str(self.folder / "out"))
        self.require((status.answered, status.repeated) == (ROWS, repeated_rows), f"status counts {status}")
        self.check_export("export-1")
        third = self.start_run("third", self.rng.choice(OTHER_CHUNK_ROWS), None)
        self.require(self.wait_for(third) == 0, "the third run fails")
        self.require(self.count_repeated_rows() == 0, "rows are in data/ twice after another run")
        self.check_export("export-2")
        return Trial(self.fault, self.in_shards, first_code == STOPPED, repeated_rows)

    def start_run(self, name: str, chunk_rows: int, prepare: Callable[[Path], None] | None, *options: str) -> Any:
        command = ["run", str(self.folder / "job.yaml"), "--local", f"--set=output.chunk_rows={chunk_rows}", *options]
        process = processes.Process(target=run_in_child, args=(self.folder, name, command, prepare))
        process.start()
        return process

    def wait_for(self, process: Any) -> int | None:
        process.join(TIMEOUT_S)
        code: int | None = process.exitcode
        process.kill()
        return code

    def count_repeated_rows(self) -> int:
        counts = count_ids(self.folder / "out/data")
        self.require(set(counts) == set(self.ids), f"data/ has {sorted(counts)}")
        return counts.total() - len(counts)

    def check_export(self, name: str) -> None:
        messages: list[str] = []
        job = job_loader.load_job(str(self.folder / "job.yaml"))
        code = export_job(job, str(self.folder / name), "table", ExportOptions(), messages.append)
        counts = count_ids(self.folder / name)
        self.require(code == 0 and counts == Counter(self.ids), f"{name} ends with {code}: {messages}, {counts}")

    def wait_until(self, is_reached: Callable[[], object], message: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not is_reached():
            self.require(time.monotonic() < deadline, message)
            time.sleep(0.002)

    def require(self, is_met: bool, message: str) -> None:
        logs = "".join(f"\n{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))
        assert is_met, f"{self.fault}: {message}{logs}"


def run_in_child(folder: Path, name: str, command: list[str], prepare: Callable[[Path], None] | None) -> None:
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if prepare:
        prepare(folder)
    sys.exit(run_command(command))


def install_fault(folder: Path) -> None:
    """Let the output fail in this process, from when the file `disk` or `late` appears in the folder."""

    def fail_during_outage(function: Callable[..., Any], *arguments: Any) -> Any:
        flag, place = folder / "disk", str(arguments[0])
        is_elsewhere = place.startswith("/") and not place.startswith(f"{folder}/out")  # fsync has no path
        if not is_elsewhere and flag.exists() and time.time() - flag.stat().st_mtime < OUTAGE_S:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return function(*arguments)

    def link_late(link: Callable[[str, str], None], source: str, target: str) -> None:
        if "/data/" in target and (folder / "late").exists():
            (folder / "waiting").touch()
            while not (folder / "released").exists():
                time.sleep(0.01)
        fail_during_outage(link, source, target)

    os.link = partial(link_late, os.link)
    for name in ("fsync", "replace", "scandir"):
        setattr(os, name, partial(fail_during_outage, getattr(os, name)))


def count_ids(folder: Path) -> Counter[str]:
    ids: Counter[str] = Counter()
    for path in folder.rglob("[!.]*.parquet"):
        ids.update(pq.ParquetFile(path).read(["id"])["id"].to_pylist())
    return ids


def run_trials(folder: Path, *, moments: int, seed: int, faults: Sequence[str] = FAULTS) -> list[Trial]:
    """The faults take turns."""
    os.environ["VLBATCH_LEASE_S"] = LEASE_S  # the processes inherit it

    def run_trial(number: int) -> Trial:
        place = folder / f"{number}"
        place.mkdir()
        rng = random.Random(seed * 100_000 + number)
        trial = TakeoverTrial(place, faults[number % len(faults)], rng, in_shards=number % 2 == 1).run()
        shutil.rmtree(place)
        print(f"  {number}: {trial}", file=sys.stderr, flush=True)
        return trial

    with ThreadPoolExecutor(TRIALS_AT_ONCE) as pool:
        return list(pool.map(run_trial, range(moments)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="the seed that an earlier run printed")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}: python -m tests.chaos.takeover --moments {options.moments} --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vl") as folder:
        trials = run_trials(Path(folder), moments=options.moments, seed=seed)
    by_fault: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_fault[f"{trial.fault}, in shards" if trial.in_shards else trial.fault].append(trial)
    lines = [
        [
            fault,
            len(of_fault),
            sum(trial.taken_over for trial in of_fault),
            sum(trial.repeated_rows > 0 for trial in of_fault),
            max(trial.repeated_rows for trial in of_fault),
        ]
        for fault, of_fault in by_fault.items()
    ]
    print(harness.format_table(["fault", "moments", "taken over", "with a late part", "repeated rows, most"], lines))
    print("no row twice in an export, and none twice in data/ after one more run")


if __name__ == "__main__":
    main()
