"""Chunks -> what their rows would show a model, counted from headers: rows by kind, tokens, sizes, failures.

Each row goes through the very steps that prepare it for a run, with headers in place of pixels, so a row's tokens
are those of the run and a row that fails here fails there, for the same reason. Only what a header cannot tell, as
a file that is cut off, is left for the run to find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from pipeline.context import RunContext
from pipeline.fetch.header_fetcher import HeaderFetcher
from pipeline.manifest.chunks import Chunk
from pipeline.media.decode import build_decode_limits
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.prepare import Preparer
from pipeline.types import Clip, Failure, ReadItem, Request, Size

MAX_SAMPLED_CHUNKS = 100  # chunks that a sample is spread over: each costs reading a part of the manifest
BATCH_ROWS = (
    300  # rows, from as many chunks as that takes; media that a manifest holds as bytes are in memory with them
)
MAX_DISTINCT_CLIPS = 20_000  # kinds of them, by their sizes, that advice is reckoned on


@dataclass(frozen=True, slots=True)
class SurveyedMedia:
    """One medium, as it is and as the model would see it."""

    kind: str
    source_size: Size
    model_size: Size
    frame_count: int


@dataclass
class Survey:
    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # of rows: picture, pictures, video, mixed, text
    media: Counter[str] = field(default_factory=Counter)  # of media: image, video
    resized: Counter[str] = field(default_factory=Counter)
    source_pixels: Counter[str] = field(default_factory=Counter)  # of a frame
    model_pixels: Counter[str] = field(default_factory=Counter)
    largest: dict[str, Size] = field(default_factory=dict)
    frames: int = 0  # of videos
    vision: Counter[int] = field(default_factory=Counter)  # vision tokens of a row -> rows
    text: Counter[int] = field(default_factory=Counter)
    longest: int = 0  # prompt and the budget of the answer
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind"
    examples: dict[str, str] = field(default_factory=dict)
    clips: Counter[SurveyedMedia] = field(default_factory=Counter)

    def add_outcome(self, outcome: Request | Failure) -> None:
        self.rows += 1
        if isinstance(outcome, Failure):
            name = f"{outcome.stage}/{outcome.kind}"
            self.failures[name] += 1
            self.examples.setdefault(name, outcome.message)
            return
        self.kinds[classify_row(outcome.clips)] += 1
        self.vision[outcome.vision_tokens] += 1
        self.text[len(outcome.input_ids) - outcome.vision_tokens] += 1
        budget = outcome.sampling.max_new_tokens + (outcome.sampling.max_thinking_tokens or 0)
        self.longest = max(self.longest, len(outcome.input_ids) + budget)
        for clip in outcome.clips:
            self.add_media(SurveyedMedia(clip.kind, clip.source_region_size, clip.size, len(clip.pixels)))

    def add_media(self, media: SurveyedMedia) -> None:
        kind, pixels = media.kind, media.source_size[0] * media.source_size[1]
        self.media[kind] += 1
        self.resized[kind] += media.source_size != media.model_size
        self.source_pixels[kind] += pixels
        self.model_pixels[kind] += media.model_size[0] * media.model_size[1]
        largest = self.largest.get(kind, (0, 0))
        self.largest[kind] = media.source_size if pixels > largest[0] * largest[1] else largest
        self.frames += media.frame_count if kind == "video" else 0
        if media in self.clips or len(self.clips) < MAX_DISTINCT_CLIPS:
            self.clips[media] += 1

    @property
    def answerable_rows(self) -> int:
        return self.rows - self.failures.total()


def classify_row(clips: Sequence[Clip]) -> str:
    kinds = {clip.kind for clip in clips}
    if len(kinds) > 1:
        return "mixed"
    if "image" in kinds:
        return "picture" if len(clips) == 1 else "pictures"
    return "video" if kinds else "text"


def survey_chunks(context: RunContext, chunks: Iterable[Chunk]) -> Survey:
    found = Survey()
    decoder = HeaderDecoder(build_decode_limits(context.job))
    with closing(Preparer(context, fetcher=HeaderFetcher(context.job), decoder=decoder)) as preparer:
        for rows in batch_items(preparer.read_items(chunk) for chunk in chunks):
            for _, outcome in preparer.prepare_items(rows):
                found.add_outcome(outcome)
    return found


def batch_items(item_lists: Iterable[list[ReadItem]]) -> Iterator[list[ReadItem]]:
    """So many that fetching ahead of them is seldom at its end."""
    some: list[ReadItem] = []
    for each in item_lists:
        some += each
        if len(some) >= BATCH_ROWS:
            yield some
            some = []
    yield some


def sample_chunks(chunks: Sequence[Chunk], row_count: int) -> Iterator[Chunk]:
    """About so many rows, evenly spread over evenly spread chunks; all of them where there are no more."""
    if sum(chunk.asked_row_count for chunk in chunks) <= row_count:
        yield from chunks
        return
    chosen = [chunks[at] for at in pick_evenly(len(chunks), MAX_SAMPLED_CHUNKS)]
    each = -(-row_count // len(chosen))
    for chunk in chosen:
        skipped_offsets = chunk.skipped_offsets
        asked = [offset for offset in range(chunk.row_count) if offset not in skipped_offsets]
        kept = {asked[at] for at in pick_evenly(len(asked), each)}
        yield replace(
            chunk, answered_offsets=tuple(offset for offset in asked if offset not in kept) + chunk.answered_offsets
        )


def pick_evenly(count: int, wanted_count: int) -> list[int]:
    """
    >>> evenly(10, 3), evenly(2, 3)
    ([1, 5, 8], [0, 1])
    """
    return (
        [*range(count)]
        if wanted_count >= count
        else [int((at + 0.5) * count / wanted_count) for at in range(wanted_count)]
    )
