"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.context import Work, open_family
from pipeline.errors import AnswerError, surprise
from pipeline.job.spec import HttpEngine
from pipeline.model.engine_thread import Desk
from pipeline.output.answer.build_row import finish
from pipeline.output.answer.reask import settle
from pipeline.registry import ENGINES, find
from pipeline.types import Entry, Failure, Item, Outcome, Reply, Request, Row

if TYPE_CHECKING:
    pass


class Answerer:
    """What a replica keeps open: the engine, behind a desk that several chunks may ask at once."""

    def __init__(self, work: Work):
        self.work = work
        self.family = open_family(work)
        self.desk = Desk(find(ENGINES, work.job.engine.kind, "engine.kind").open(work.job))
        self.meter = self.desk.meter
        self.coordinates, self.times = self.family.coordinates, self.family.times
        if isinstance(work.job.engine, HttpEngine):  # frames go there as pictures, each with its time in the file
            self.coordinates = work.job.engine.coordinates or self.coordinates
            self.times = "source" if work.job.engine.video == "frames" else self.times

    def answer(self, entries: Sequence[Entry]) -> list[Outcome]:
        """One row or failure for every entry, in order."""
        answer, schema = self.work.job.answer, self.work.schema
        guide = schema.text if schema and answer.guided else None
        asked = [(item, replace(request, schema=guide)) for item, request in entries if isinstance(request, Request)]
        settled = iter(
            settle(asked, answer=self.desk.answer, finish=self.finish, retries=answer.retries if schema else 0)
        )
        return [(item, entry if isinstance(entry, Failure) else next(settled)) for item, entry in entries]

    def finish(self, item: Item, request: Request, reply: Reply, attempts: int) -> Row | Failure:
        try:
            return finish(
                item,
                request,
                reply,
                schema=self.work.schema,
                family_coordinates=self.coordinates,
                family_times=self.times,
                attempts=attempts,
            )
        except AnswerError:
            raise  # another try may help
        except Exception:  # noqa: BLE001 - the row boundary
            return surprise(item.id)

    def close(self) -> None:
        self.desk.close()
