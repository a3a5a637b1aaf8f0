"""How far the runs on the shards of an output are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.inspect.output_reader import OutputReader
from pipeline.run.progress import format_count

MAX_LISTED_SHARDS = 20
STATES = ("done", "running", "stopped", "not begun")


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """The field names are keys of `status --json`."""

    shard: str  # 2/4
    state: str  # one of STATES
    left: int  # rows
    run: str = ""  # the newest on it
    host: str = ""
    seen: str = ""  # its last heartbeat, by the store's clock


def read_shards(reader: OutputReader, plan: Mapping[str, Any]) -> list[ShardStatus]:
    """`plan` is the first of the runs on shards: what they all have committed since is taken from what it left."""
    number_of_run = {run_id: other["shard"][0] for run_id, other in reader.shard_plans.items()}
    done_rows = Counter[int]()
    for run_id, commits in reader.commits.items():
        if run_id in number_of_run and commits.epoch == plan["epoch"]:
            done_rows[number_of_run[run_id]] += commits.newly_asked
    count = plan["shard"][1]
    return [
        describe_shard(reader, f"{number}/{count}", number, max(0, rows_left - done_rows[number]))
        for number, rows_left in enumerate(plan["rows_left_by_shard"], 1)
    ]


def describe_shard(reader: OutputReader, name: str, number: int, left: int) -> ShardStatus:
    holder = reader.shard_holders.get(number)
    if holder is None:
        return ShardStatus(name, "not begun" if left else "done", left)
    state = "running" if holder.held else "stopped" if left else "done"
    return ShardStatus(name, state, left, holder.run, holder.host, holder.seen)


def format_shards(shards: Sequence[ShardStatus]) -> Iterator[str]:
    counts = Counter(shard.state for shard in shards)
    yield f"shards    {len(shards)}: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    open_shards = [shard for shard in shards if shard.state != "done"]
    for shard in open_shards[:MAX_LISTED_SHARDS]:
        run = f"  run {shard.run} on {shard.host}; last seen {shard.seen}" if shard.run else ""
        yield f"  {shard.shard:<8} {shard.state:<10} {format_count(shard.left, 'row'):>12} left{run}"
    if len(open_shards) > MAX_LISTED_SHARDS:
        yield f"  and {len(open_shards) - MAX_LISTED_SHARDS} more"
