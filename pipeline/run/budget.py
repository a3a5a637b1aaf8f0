"""Stops a run when the answers to its question have cost what `limits.budget` allows. All runs count.

A budget can be exceeded by what is under way when it is spent: chunks that have begun are answered and committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import StoppedError
from pipeline.job.spec import Job
from pipeline.output.commit import read_receipt
from pipeline.output.dataset import Dataset, list_runs, read_run_document
from pipeline.run.log import Say
from pipeline.run.tally import RunTotals
from pipeline.types import NO_TOKENS, TokenCounts, add_counts

WARNING_SHARE = 0.8
ENGINE_STEPS = ("worked", "waited")  # the time of engines, of which each holds the GPUs of its replica


class Budget:
    def __init__(self, job: Job, dataset: Dataset, say: Say):
        self.job, self.say = job, say
        settings = job.limits.budget
        self.limits = {name: limit for name, limit in settings if limit is not None} if settings else {}
        self.spent_before = read_earlier_costs(job, dataset) if self.limits else {}
        self.has_warned = False

    def find_spent_limit(self, totals: RunTotals) -> str:
        """A sentence about a limit that is reached; empty while there is none. Says when most of one is spent."""
        now = compute_costs(self.job, totals.tokens, totals.worker_seconds)
        spent = {name: self.spent_before[name] + now[name] for name in self.limits}
        shares = {name: spent[name] / limit for name, limit in self.limits.items()}
        name = max(shares, key=lambda name: shares[name], default="")
        if not name or shares[name] < WARNING_SHARE:
            return ""
        sentence = f"{spent[name]:,.6g} of the {self.limits[name]:,.6g} of limits.budget.{name} are spent"
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


def read_earlier_costs(job: Job, dataset: Dataset) -> dict[str, float]:
    """Of all runs of the question, from their reports. The parts tell the tokens of runs that were killed."""
    reported = list_runs(dataset.store, "report")
    reports = [read_run_document(dataset.store, run_id, "report") for run_id in reported]
    costs = [
        compute_costs(job, read_tokens(report), report["workers_seconds"])
        for report in reports
        if report["fingerprint"] == dataset.fingerprint
    ]
    if set(list_runs(dataset.store, "plan")) - set(reported):
        parts = [part for part in dataset.list_parts() if dataset.read_footer(part).note.get("run") not in reported]
        tokens = add_counts(NO_TOKENS, *(read_receipt(dataset, part).tokens for part in parts))
        costs.append(compute_costs(job, tokens, {}))
    return {name: sum(cost[name] for cost in costs) for name in ("tokens", "gpu_hours", "cost")}


def read_tokens(report: Mapping[str, Any]) -> TokenCounts:
    return TokenCounts(report["vision_tokens"], report["prompt_tokens"], report["output_tokens"])
