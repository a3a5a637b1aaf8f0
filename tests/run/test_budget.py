"""`limits.budget` stops a run in good order, and counts what earlier runs of the question have spent."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pipeline.errors import JobError, StoppedError
from pipeline.job.job_loader import parse_job
from pipeline.job.spec import Job
from pipeline.run.budget import compute_costs
from pipeline.types import TokenCounts

PRICED = """
name: priced
input: {manifest: m.parquet, media: uri}
prompt: {user: "?"}
model: {weights: "builtin:tiny"}
engine: {kind: http, url: "http://127.0.0.1:9/v1", model: m, price: {input: 1, output: 10}}
limits: {budget: {cost: 2.5}}
output: {path: out}
"""


def run(workspace, **budget: float) -> str:
    """Run with a budget. Returns why the run stopped; empty if it did not."""
    try:
        workspace.run_job(limits={"error_rate": 1, **({"budget": budget} if budget else {})})
    except StoppedError as error:
        return str(error)
    return ""


def count_spent_tokens(workspace) -> int:
    reports = [json.loads(path.read_text()) for path in workspace.folder.glob("out/runs/*/report.json")]
    return sum(report["prompt_tokens"] + report["output_tokens"] for report in reports)


@pytest.fixture
def chunk_tokens(workspace) -> int:
    """The tokens of a chunk. Leaves four chunks to do."""
    workspace.write_manifest(workspace.draw_images(20))
    workspace.run_job(row_limit=4)
    return count_spent_tokens(workspace)


def test_a_run_stops_when_its_budget_is_spent_and_goes_on_with_a_higher_one(workspace, chunk_tokens):
    reason = run(workspace, tokens=3 * chunk_tokens - 5)
    assert reason.startswith("stopped: ")
    assert "of limits.budget.tokens are spent; answers are kept, and the same command with a higher" in reason
    assert len(workspace.list_answered_ids()) == 12
    [status] = [
        report["status"]
        for path in workspace.folder.glob("out/runs/*/report.json")
        if (report := json.loads(path.read_text()))["answered"] == 8
    ]
    assert status == "stopped"
    assert run(workspace, tokens=3 * chunk_tokens - 5) == reason, "a run that can do nothing says the same"
    assert len(workspace.list_answered_ids()) == 12
    assert run(workspace, tokens=100 * chunk_tokens) == ""
    assert len(workspace.list_answered_ids()) == 20


def test_a_run_that_is_complete_when_the_budget_is_spent_is_no_stopped_run(workspace, chunk_tokens):
    assert run(workspace, tokens=5 * chunk_tokens - 20) == ""
    assert len(workspace.list_answered_ids()) == 20
    assert run(workspace, tokens=1) == "", "nothing is left to pay for"


def test_most_of_a_budget_is_a_warning_once(workspace, chunk_tokens):
    assert run(workspace, tokens=int(4.9 * chunk_tokens)) == ""
    [warning] = [message for message in workspace.messages if "limits.budget.tokens" in message]
    assert warning.startswith("careful: ")


def test_the_tokens_of_a_killed_run_count(workspace, chunk_tokens):
    [report] = workspace.folder.glob("out/runs/*/report.json")
    report.unlink()
    assert "are spent" in run(workspace, tokens=chunk_tokens)
    assert len(workspace.list_answered_ids()) == 4
    assert run(workspace, tokens=2 * chunk_tokens + 5) != ""
    assert len(workspace.list_answered_ids()) == 12


def test_money_and_gpu_hours_are_counted():
    job = parse_job(PRICED)
    costs = compute_costs(job, TokenCounts(0, 2_000_000, 100_000), Counter(worked=3000.0, waited=600.0, fetch=9e9))
    assert costs == {"tokens": 2_100_000, "gpu_hours": 0, "cost": 3.0}
    values = parse_job(PRICED).model_dump(by_alias=True)
    values |= {
        "engine": {"kind": "torch"},
        "workers": {"generate": {"gpus": 2}},
        "limits": {"budget": {"gpu_hours": 1}},
    }
    values["model"]["tensor_parallel"] = 2
    on_gpus = Job.model_validate(values)
    assert compute_costs(on_gpus, TokenCounts(), Counter(worked=3000.0, waited=600.0))["gpu_hours"] == 2


def test_a_budget_that_cannot_be_counted_is_refused():
    with pytest.raises(JobError, match=r"limits.budget.cost needs engine.price"):
        parse_job(PRICED.replace(", price: {input: 1, output: 10}", ""))
    with pytest.raises(JobError, match=r"gpu_hours counts GPUs, and workers.generate.gpus is 0"):
        parse_job(PRICED.replace("cost: 2.5", "gpu_hours: 1"))
