"""A chunk that grew too heavy for a block is answered by a replica that prepares the rest of it."""

from __future__ import annotations

from contextlib import closing

import pytest

from pipeline import prepare
from pipeline.answer import Answerer
from pipeline.cluster import chunk_codec
from pipeline.cluster.late_preparation import LatePreparer
from pipeline.cluster.workers import answer_or_exit, fail_unanswered_row
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.prepare import Preparer, keep_first_piece, weigh_row
from pipeline.run.preflight import build_run_context
from pipeline.run.resume import split_in_process
from pipeline.run.tally import LATE_STEP
from pipeline.types import Failure, Request, Row

MISSING = {"id": "gone", "image": "pics/gone.png", "hint": "h"}


@pytest.fixture
def context(workspace):
    rows = workspace.draw_images(6)
    workspace.write_manifest([*rows[:4], MISSING, *rows[4:]])
    job = Job.model_validate(workspace.build_job(output={"chunk_rows": 7}))
    return build_run_context(job, list_manifest_files(job))


def send_rows(context, groups):
    """The rows as a replica gets them, which the other pool has prepared group by group."""
    ((chunk, _),) = split_in_process(context.job, list_manifest_files(context.job), context.schema_prompt)
    with closing(Preparer(context)) as preparer:
        items = preparer.read_items(chunk)
        sent = [row for group in groups for row in keep_first_piece(items[group], preparer.prepare_items(items[group]))]
        table = chunk_codec.encode_slice("key", sent, {})
        assert chunk_codec.count_rows(table) == 7
        return chunk_codec.decode_slice(table), list(preparer.prepare_items(items))


@pytest.mark.parametrize(
    ("groups", "left"), [([slice(7)], "0011111"), ([slice(3), slice(3, 4), slice(4, 7)], "0010000")]
)
def test_a_replica_prepares_what_was_left_and_answers_every_row_in_order(context, monkeypatch, groups, left):
    _, prepared = send_rows(context, [slice(7)])
    monkeypatch.setattr(prepare, "MAX_PIECE_BYTES", 2 * weigh_row(prepared[0]))
    sent, _ = send_rows(context, groups)
    assert "".join(str(int(request is None)) for _, request in sent) == left
    answer_items, pieces = Answerer.answer_items, []

    def record_piece(self, prepared_items):
        pieces.append(sum(isinstance(request, Request) for _, request in prepared_items))
        return answer_items(self, prepared_items)

    monkeypatch.setattr(Answerer, "answer_items", record_piece)
    with closing(Answerer(context)) as answerer:
        outcomes = answer_or_exit(answerer, LatePreparer(context), sent)
        assert pieces == [2, 2, 2]
        assert answerer.timer.take_seconds()[LATE_STEP] > 0
        assert [(item.id, item.turns, type(row)) for item, row in outcomes] == [
            *[(f"r{number}", (), Row) for number in range(4)],
            ("gone", (), Failure),
            *[(f"r{number}", (), Row) for number in (4, 5)],
        ]
        assert [row.text for _, row in outcomes if isinstance(row, Row)] == [f"seen r{number}" for number in range(6)]


def test_a_row_that_was_left_and_crashes_replicas_fails_by_name(context, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_PIECE_BYTES", 1)
    sent, _ = send_rows(context, [slice(7)])
    item, failure = fail_unanswered_row(sent[-1], "3 processes died")
    assert (item.id, failure.kind) == ("r5", "worker_died")
