"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.context import RunContext, open_family
from pipeline.errors import AnswerError, build_internal_failure
from pipeline.job.spec import HttpSettings
from pipeline.model.engine_thread import EngineThread
from pipeline.output.answer.build_row import build_row
from pipeline.output.answer.reask import answer_with_retries
from pipeline.registry import ENGINES, load_registered
from pipeline.types import Failure, Item, Outcome, PreparedItem, Reply, Request, Row

if TYPE_CHECKING:
    pass


class Answerer:
    """What a replica keeps open: the engine, behind a desk that several chunks may ask at once."""

    def __init__(self, context: RunContext):
        self.context = context
        self.family = open_family(context)
        self.engine_thread = EngineThread(
            load_registered(ENGINES, context.job.engine.kind, "engine.kind").open(context.job)
        )
        self.timer = self.engine_thread.meter
        self.coordinates, self.times = self.family.coordinates, self.family.time_origin
        if isinstance(context.job.engine, HttpSettings):  # frames go there as pictures, each with its time in the file
            self.coordinates = context.job.engine.coordinates or self.coordinates
            self.times = "source" if context.job.engine.video == "frames" else self.times

    def answer_items(self, prepared_items: Sequence[PreparedItem]) -> list[Outcome]:
        """One row or failure for every entry, in order."""
        answer, schema = self.context.job.answer, self.context.schema
        guide = schema.text if schema and answer.guided else None
        asked = [
            (item, replace(request, schema_text=guide))
            for item, request in prepared_items
            if isinstance(request, Request)
        ]
        settled = iter(
            answer_with_retries(
                asked,
                answer_requests=self.engine_thread.answer_requests,
                build_row=self.build_row,
                max_retries=answer.retries if schema else 0,
            )
        )
        return [(item, entry if isinstance(entry, Failure) else next(settled)) for item, entry in prepared_items]

    def build_row(self, item: Item, request: Request, reply: Reply, attempts: int) -> Row | Failure:
        try:
            return build_row(
                item,
                request,
                reply,
                schema=self.context.schema,
                coordinate_system=self.coordinates,
                time_origin=self.times,
                attempts=attempts,
            )
        except AnswerError:
            raise  # another try may help
        except Exception:  # noqa: BLE001 - the row boundary
            return build_internal_failure(item.id)

    def close(self) -> None:
        self.engine_thread.close()
