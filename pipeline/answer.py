"""Asks the engine for the replies of a chunk and builds its rows. An unexpected error costs one row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from pipeline.context import RunContext, open_family
from pipeline.errors import AnswerError, build_internal_failure
from pipeline.model.engine_thread import EngineThread
from pipeline.model.engines.base import get_engine_type
from pipeline.output.answer.build_row import build_row
from pipeline.output.answer.reader import choose_reader
from pipeline.output.answer.reask import answer_with_retries
from pipeline.types import Failure, Item, Outcome, PreparedItem, Reply, Request, Row


class Answerer:
    """The engine of one replica, in a thread of its own, so that several chunks can be answered at once."""

    def __init__(self, context: RunContext):
        self.context = context
        self.family = open_family(context)
        engine_type = get_engine_type(context.job)
        self.engine_thread = EngineThread(engine_type.open(context.pinned_job))
        self.timer = self.engine_thread.timer
        self.read_answer = choose_reader(
            context,
            engine_type.get_coordinate_system(context.job, self.family),
            engine_type.get_time_origin(context.job, self.family),
        )

    def answer_pieces(self, pieces: Iterable[Sequence[PreparedItem]]) -> list[Outcome]:
        """The outcomes of a chunk whose pieces are prepared one by one, so that not all are in memory."""
        return list(chain.from_iterable(map(self.answer_items, pieces)))

    def answer_items(self, prepared_items: Sequence[PreparedItem]) -> list[Outcome]:
        """One row or failure for every entry, in order."""
        answer, schema = self.context.job.answer, self.context.schema
        guide = schema.text if schema and answer.guided and answer.is_written else None
        asked = [
            (item, replace(request, schema_text=guide, wants_confidence=schema is not None))
            for item, request in prepared_items
            if isinstance(request, Request)
        ]
        settled = iter(
            answer_with_retries(
                asked,
                answer_requests=self.engine_thread.answer_requests,
                build_row=self.build_row,
                max_retries=answer.retries if schema and answer.is_written else 0,
            )
        )
        return [(item, entry if isinstance(entry, Failure) else next(settled)) for item, entry in prepared_items]

    def build_row(self, item: Item, request: Request, reply: Reply, attempts: int) -> Row | Failure:
        try:
            return build_row(
                item,
                request,
                reply,
                self.read_answer,
                review_below=self.context.job.answer.review_below,
                confidence_maps=self.context.confidence_maps,
                attempts=attempts,
            )
        except AnswerError:
            raise  # another try may help
        except Exception:  # noqa: BLE001 - the row boundary
            return build_internal_failure(item.id)

    def close(self) -> None:
        self.engine_thread.close()
