"""Every registered runner gives the same chunks, parts and receipts."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.errors import Terminated
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.output.dataset import Dataset, write_run_document
from pipeline.output.store import OutputStore
from pipeline.registry import RUNNERS, load_registered
from pipeline.run import preflight
from pipeline.run.resume import build_resume_plan
from pipeline.run.signals import StopSignals

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=RUNNERS)
def runner(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        runner = load_registered(RUNNERS, request.param, "runner")()
        with runner.connect(show_log=False):
            yield runner


def plan_job(workspace, runner, **sections):
    job = Job.model_validate(workspace.build_job(**sections))
    manifest_files = list_manifest_files(job)
    context = preflight.build_run_context(job, manifest_files)
    dataset = Dataset(OutputStore(context.job.output.path), context.fingerprint)
    write_run_document(dataset.store, context.run_id, "job", job.model_dump_json())
    plan = build_resume_plan(context, manifest_files, dataset, splitter=runner.split_manifest)
    return context, dataset, plan


def test_a_runner_commits_every_chunk_and_returns_its_receipt(workspace, runner):
    workspace.write_manifest([*workspace.draw_images(6), *workspace.write_broken_images(2)])
    context, dataset, plan = plan_job(workspace, runner)
    with StopSignals(workspace.messages.append) as signals:
        receipts = list(runner.run_chunks(context, plan.remaining_chunks, signals))
    assert {receipt.part_name for receipt in receipts} == {chunk.part_name for chunk in plan.chunks}
    assert {receipt.part_name for receipt in receipts} == set(dataset.list_parts())
    assert (sum(receipt.answered for receipt in receipts), sum(receipt.failed for receipt in receipts)) == (6, 2)
    assert {row.id for receipt in receipts for row in receipt.failed_rows} == {"bad0", "bad1"}


def test_a_runner_that_is_asked_to_stop_commits_the_chunks_that_it_has_begun(workspace, runner):
    workspace.write_manifest(workspace.draw_images(120))
    context, dataset, plan = plan_job(workspace, runner, engine={"delay_ms": 200, "slots": 4})
    receipts = []

    def run_until_stopped(signals):
        for receipt in runner.run_chunks(context, plan.remaining_chunks, signals):
            if not receipts:
                os.kill(os.getpid(), signal.SIGTERM)
            receipts.append(receipt)

    with StopSignals(workspace.messages.append) as signals, pytest.raises(Terminated):
        run_until_stopped(signals)
    parts = set(dataset.list_parts())
    assert {receipt.part_name for receipt in receipts} <= parts  # the receipt of a last chunk may get lost
    assert len(parts) < len(plan.chunks)
