"""Follows an output while runs write it: progress, the last answers, the last errors. Each part is read once."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import OutputError, PipelineError
from pipeline.inspect.output_reader import OutputReader, open_output_reader
from pipeline.inspect.report import load_original_job, read_answer_schema
from pipeline.inspect.report.cards import Card, build_card
from pipeline.inspect.report.drawn_media import Palette
from pipeline.inspect.report.previews import PreviewLoader
from pipeline.inspect.report.statistics import SampledRow
from pipeline.job.spec import InputSection
from pipeline.output.answer.geometry import find_field_meanings
from pipeline.output.part_index import read_footers
from pipeline.output.part_listing import PartListing, split_part_name
from pipeline.run.progress import format_duration

SHOWN_ANSWERS, SHOWN_ERRORS = 12, 20
RATE_WINDOW_S = 120.0
WAITING = "nothing is committed yet"


@dataclass(frozen=True)
class LiveView:
    """What the page shows at one moment."""

    name: str
    path: str
    status: str
    tiles: list[tuple[str, str]] = field(default_factory=list)
    done_share: float = 0.0
    cards: list[Card] = field(default_factory=list)
    failures: list[tuple[str, int]] = field(default_factory=list)  # by reason
    errors: list[dict[str, Any]] = field(default_factory=list)  # the last ones


class LiveOutput:
    def __init__(self, path: str, access: InputSection | None):
        """`access` says where media may be read from; None: wherever the run itself may, for an output of one's own."""
        self.path, self.access = path, access
        self.fingerprint = ""
        self.forget_question()

    def forget_question(self) -> None:
        self.seen_parts = PartListing.empty()
        self.newest_run = ""
        self.answered = 0
        self.failure_counts: Counter[str] = Counter()  # of rows that are still failed
        self.rows: deque[dict[str, Any]] = deque(maxlen=SHOWN_ANSWERS)
        self.errors: deque[dict[str, Any]] = deque(maxlen=SHOWN_ERRORS)
        self.samples: deque[tuple[float, int]] = deque()
        self.cards: dict[str, Card] = {}

    def read_view(self) -> LiveView:
        """Read what is new. An output that is not there yet, or cannot be reached, is a status and no error."""
        try:
            reader = open_output_reader(self.path)
        except OutputError as error:
            return LiveView(self.path, self.path, str(error))
        if reader.dataset.fingerprint != self.fingerprint:
            self.forget_question()
            self.fingerprint = reader.dataset.fingerprint
        try:
            self.read_new_parts(reader)
            return self.build_view(reader)
        except PipelineError as error:
            return LiveView(self.path, self.path, str(error))

    def read_new_parts(self, reader: OutputReader) -> None:
        new_parts = reader.parts.select_new(self.seen_parts)
        answered, failure_counts = 0, Counter[str]()
        for _, footer in read_footers(reader.dataset, new_parts):
            answered += footer.row_count
            failure_counts.update(footer.note["kinds"])
        self.seen_parts = reader.parts  # not before: where a footer cannot be read, all are read again
        self.answered += answered
        self.failure_counts.update(failure_counts)
        for part in new_parts.select_newest(SHOWN_ANSWERS):
            self.rows.extend(reader.dataset.read_part(part).slice(0, SHOWN_ANSWERS).to_pylist())
            if letters := reader.dataset.read_footer(part).note["errors"]:
                self.errors.extend(reader.dataset.read_dead_letters(letters).slice(0, SHOWN_ERRORS).to_pylist())
        newest_run, _ = reader.read_newest_plan()
        if newest_run != self.newest_run or any(split_part_name(part)[1] for part in new_parts):
            self.newest_run = newest_run  # it may ask failed rows again, or cut the manifest into other chunks
            letters_left = reader.read_failed_rows()
            self.failure_counts = Counter(f"{letter.stage}/{letter.kind}" for letter in letters_left)
        now = time.monotonic()
        self.samples.append((now, self.answered + self.failed))
        while len(self.samples) > 2 and now - self.samples[0][0] > RATE_WINDOW_S:
            self.samples.popleft()

    @property
    def failed(self) -> int:
        return self.failure_counts.total()

    def build_view(self, reader: OutputReader) -> LiveView:
        _, plan = reader.read_newest_plan()
        total, done = plan.get("rows", 0), self.answered + self.failed
        holder = reader.lease_holder
        is_running = bool(holder and holder.held)
        return LiveView(
            name=reader.job.get("name", "answers"),
            path=self.path,
            status="running" if is_running else "no run is at work" if done else WAITING,
            tiles=[*self.list_tiles(total, done, is_running=is_running)],
            done_share=min(1.0, done / total) if total else 0.0,
            cards=self.build_cards(reader),
            failures=self.failure_counts.most_common(),
            errors=list(self.errors)[::-1],
        )

    def list_tiles(self, total: int, done: int, *, is_running: bool) -> Iterator[tuple[str, str]]:
        yield "rows done", f"{done:,} of {total:,}" if total else f"{done:,}"
        yield "answered", f"{self.answered:,}"
        yield "failed", f"{self.failed:,}"
        (start, before), (end, now) = self.samples[0], self.samples[-1]
        rate = (now - before) / (end - start) if end > start else 0.0
        if is_running and rate:
            yield "rows/s", f"{rate:,.1f}"
            yield "left", format_duration(max(0.0, total - done) / rate)

    def build_cards(self, reader: OutputReader) -> list[Card]:
        """Of the last rows, the newest first. A card that was built before is kept."""
        if new_rows := [row for row in self.rows if row["id"] not in self.cards]:
            meanings, palette = find_field_meanings(read_answer_schema(reader.question)), Palette()
            job = load_original_job(reader)
            previews = PreviewLoader(job.model_copy(update={"input": self.access}) if self.access else job)
            try:
                for row in new_rows:
                    sampled = SampledRow("newest", row)
                    self.cards[row["id"]] = build_card(sampled, meanings, previews.load_preview, palette, wide=False)
            finally:
                previews.close()
        self.cards = {row["id"]: self.cards[row["id"]] for row in self.rows}
        return [*self.cards.values()][::-1]
