"""Stops a run when the answers to its question have cost what `limits.budget` allows. All runs count.

A budget can be exceeded by what is under way when it is spent: chunks that have begun are answered and committed.
Runs on shards do not know what the others spend, so each may spend its share of the budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pipeline.errors import StoppedError
from pipeline.job.spec import Job
from pipeline.output.commit import read_receipt
from pipeline.output.dataset import Dataset, list_runs, read_run_document
from pipeline.output.part_index import read_footers
from pipeline.run.log import Say
from pipeline.run.shards import Shard
from pipeline.run.tally import RunTotals
from pipeline.types import NO_TOKENS, TokenCounts, add_counts

WARNING_SHARE = 0.8
COST_NAMES = ("tokens", "gpu_hours", "cost")
ENGINE_STEPS = ("worked", "waited")  # the time of engines, of which each holds the GPUs of its replica


class Budget:
    def __init__(self, job: Job, dataset: Dataset, say: Say, shard: Shard | None = None):
        self.job, self.say, self.shard = job, say, shard
        settings, share = job.limits.budget, 1 / shard.total if shard else 1
        self.limits = {name: share * limit for name, limit in settings if limit is not None} if settings else {}
        self.spent_before = read_earlier_costs(job, dataset, shard) if self.limits else {}
        self.has_warned = False

    def find_spent_limit(self, totals: RunTotals) -> str:
        """A sentence about a limit that is reached; empty while there is none. Says when most of one is spent."""
        now = compute_costs(self.job, totals.tokens, totals.worker_seconds)
        spent = {name: self.spent_before[name] + now[name] for name in self.limits}
        shares = {name: spent[name] / limit for name, limit in self.limits.items()}
        name = max(shares, key=lambda name: shares[name], default="")
        if not name or shares[name] < WARNING_SHARE:
            return ""
        part = f" for shard {self.shard}" if self.shard else ""
        sentence = f"{spent[name]:,.6g} of the {self.limits[name]:,.6g} of limits.budget.{name}{part} are spent"
        if shares[name] >= 1:
            return f"stopped: {sentence}; answers are kept, and the same command with a higher budget goes on"
        if not self.has_warned:
            self.has_warned = True
            self.say(f"careful: {sentence}")
        return ""

    def raise_if_spent(self) -> None:
        """Before a run starts: by the earlier ones."""
        if sentence := self.find_spent_limit(RunTotals()):
            raise StoppedError(sentence)


def compute_costs(job: Job, tokens: TokenCounts, engine_seconds: Mapping[str, float]) -> dict[str, float]:
    """What the keys of limits.budget count."""
    seconds = sum(engine_seconds.get(step, 0.0) for step in ENGINE_STEPS)
    return {
        "tokens": tokens.prompt + tokens.output,
        "gpu_hours": seconds * job.workers.generate.gpus / 3600,
        "cost": job.engine.compute_cost(tokens.prompt, tokens.output) or 0.0,
    }


def read_earlier_costs(job: Job, dataset: Dataset, shard: Shard | None) -> dict[str, float]:
    """Of all runs of the question, from their reports. The parts tell the tokens of runs that were killed.

    For a shard: what runs on it have spent, and a share of what runs on the whole, or on other divisions, have.
    """
    store = dataset.store
    reported, planned = list_runs(store, "report"), list_runs(store, "plan")
    reports = {run_id: read_run_document(store, run_id, "report") for run_id in reported}
    costs = {
        run_id: compute_costs(job, read_tokens(report), report["workers_seconds"])
        for run_id, report in reports.items()
        if report["fingerprint"] == dataset.fingerprint
    }
    unreported = [run_id for run_id in planned if run_id not in reports]
    documents = reports | {run_id: read_run_document(store, run_id, "plan") for run_id in unreported}
    if unreported:
        tokens: dict[str, TokenCounts] = defaultdict(lambda: NO_TOKENS)
        for part, footer in read_footers(dataset, dataset.list_parts()):
            run_id, note = footer.note.get("run", ""), footer.note
            if run_id in reports:
                continue
            if "tokens" in note:
                spent = [TokenCounts(*note[name]) for name in ("tokens", "discarded")]
            else:  # an earlier version
                spent = [read_receipt(dataset, part).tokens]
            tokens[run_id] = add_counts(tokens[run_id], *spent)
        costs |= {run_id: compute_costs(job, spent, {}) for run_id, spent in tokens.items()}
    shares = {run_id: find_share(documents.get(run_id, {}), shard) for run_id in costs}
    return {name: sum(shares[run_id] * costs[run_id][name] for run_id in costs) for name in COST_NAMES}


def find_share(run_document: Mapping[str, Any], shard: Shard | None) -> float:
    """Of what a run has spent: the share that counts for a shard."""
    if shard is None:
        return 1.0
    number, total = run_document.get("shard", (0, 0))
    if total == shard.total:
        return float(number == shard.number)
    return 1 / shard.total


def read_tokens(report: Mapping[str, Any]) -> TokenCounts:
    return TokenCounts(report["vision_tokens"], report["prompt_tokens"], report["output_tokens"])
