"""Counts what the rows of chunks would show a model, from the headers of their media: tokens, sizes and failures.

Rows go through the steps that prepare them for a run, with headers in place of pixels. So a row has the tokens that it
has in a run, and a row that fails here fails there for the same reason. Only a run finds what headers cannot tell,
such as a file that is cut off.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from random import Random

from pipeline.context import RunContext
from pipeline.fetch.header_fetcher import open_header_fetcher
from pipeline.inspect.figures import pick_evenly
from pipeline.inspect.plan.shared_beginnings import BeginningCounter
from pipeline.manifest.chunks import Chunk, compute_slice_rows
from pipeline.media.clips import list_sources
from pipeline.media.decode import build_decode_limits
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.model.engines.base import get_engine_type
from pipeline.prepare import Preparer
from pipeline.types import Clip, Failure, Item, MediaRef, ReadItem, Request, Size

MAX_SAMPLED_CHUNKS = 100  # of a sample: each costs reading a part of the manifest
BATCH_ROWS = 300  # prepared together; media that the manifest holds as bytes are in memory with them
MAX_INLINE_BYTES = 2**30  # of media that the manifest holds, in a sample
MAX_DISTINCT_CLIPS = 20_000  # clips of different sizes that advice is computed from


@dataclass(frozen=True, slots=True)
class SurveyedMedia:
    kind: str
    source_size: Size
    model_size: Size
    frame_count: int


@dataclass
class Survey:
    """The field names are keys of `plan --json`. Sums and counters are over the surveyed rows."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # rows by kind: picture, pictures, video, mixed, text
    media: Counter[str] = field(default_factory=Counter)  # media by kind: image, video
    resized: Counter[str] = field(default_factory=Counter)
    source_pixels: Counter[str] = field(default_factory=Counter)  # of a frame
    model_pixels: Counter[str] = field(default_factory=Counter)
    largest: dict[str, Size] = field(default_factory=dict)
    frames: int = 0  # of videos
    pixel_bytes: int = 0  # of all media, as the model sees them
    vision: Counter[int] = field(default_factory=Counter)  # rows by vision tokens
    text: Counter[int] = field(default_factory=Counter)
    copied: int = 0  # tokens of prompts that begin like those of earlier rows
    copied_vision: int = 0  # those of pictures and videos
    longest: int = 0  # tokens of a prompt with the budget of its answer
    failures: Counter[str] = field(default_factory=Counter)  # by "stage/kind"
    examples: dict[str, str] = field(default_factory=dict)
    clips: Counter[SurveyedMedia] = field(default_factory=Counter)

    def add_outcome(self, outcome: Request | Failure, beginnings: BeginningCounter | None = None) -> None:
        self.rows += 1
        if isinstance(outcome, Failure):
            name = f"{outcome.stage}/{outcome.kind}"
            self.failures[name] += 1
            self.examples.setdefault(name, outcome.message)
            return
        self.kinds[classify_row(outcome.row_clips)] += 1
        if beginnings:
            copied, copied_vision = beginnings.count_copied(outcome)
            self.copied += copied
            self.copied_vision += copied_vision
        self.vision[outcome.vision_tokens] += 1
        branches = {part.token_ids[:-1] for part in outcome.continuations}  # that are computed behind the prompt
        self.text[outcome.prompt_tokens - outcome.vision_tokens + sum(map(len, branches))] += 1
        longest_branch = max(map(len, branches), default=0)
        budget = outcome.sampling.max_new_tokens + (outcome.sampling.max_thinking_tokens or 0) + longest_branch
        self.longest = max(self.longest, outcome.prompt_tokens + budget)
        for clip in outcome.row_clips:
            self.pixel_bytes += clip.pixels.nbytes
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
    def row_bytes(self) -> float:
        """Of the pixels of a row."""
        return self.pixel_bytes / self.answerable_rows if self.answerable_rows else math.inf

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


def survey_chunks(context: RunContext, chunks: Iterable[Chunk], max_inline_bytes: float = math.inf) -> Survey:
    """Media that the manifest holds are read whole, so a survey may end before its last chunk."""
    survey, inline_bytes = Survey(), 0
    decoder = HeaderDecoder(build_decode_limits(context.job))
    with closing(Preparer(context, fetcher=open_header_fetcher(context.job), decoder=decoder)) as preparer:
        copies = get_engine_type(context.job).copies_beginnings(context.job)
        beginnings = BeginningCounter(preparer.family) if copies else None
        slices = chain.from_iterable(chunk.cut(compute_slice_rows(context.job)) for chunk in chunks)
        for items in batch_items(map(preparer.read_items, slices)):
            for _, outcome in preparer.prepare_items(items):
                survey.add_outcome(outcome, beginnings)
            inline_bytes += sum(count_inline_bytes(item) for item, _ in items)
            if inline_bytes > max_inline_bytes:
                break
    return survey


def count_inline_bytes(item: Item) -> int:
    parts = (part for turn in item.turns for part in turn.parts if isinstance(part, MediaRef))
    return sum(len(source) for part in parts for source in list_sources(part) if isinstance(source, bytes))


def batch_items(item_lists: Iterable[list[ReadItem]]) -> Iterator[list[ReadItem]]:
    """Batches of rows from several chunks, so that fetching ahead seldom stops."""
    batch: list[ReadItem] = []
    for items in item_lists:
        batch += items
        if len(batch) >= BATCH_ROWS:
            yield batch
            batch = []
    yield batch


def sample_chunks(chunks: Sequence[Chunk], row_count: int, *, whole: bool) -> Iterator[Chunk]:
    """About `row_count` rows of evenly spread chunks; all rows if there are no more.

    Those of a chunk follow each other, so that rows about the same picture are seen as the engine sees them. A chunk is
    sampled `whole` where reading a row of it reads the media of all. They come in a random order, which may end early.
    """
    total = sum(chunk.asked_row_count for chunk in chunks)
    if total <= row_count and not whole:
        yield from chunks
        return
    count = min(MAX_SAMPLED_CHUNKS, -(-row_count * len(chunks) // max(total, 1))) if whole else MAX_SAMPLED_CHUNKS
    sampled_chunks = [chunks[index] for index in pick_evenly(len(chunks), count)]
    if whole:
        Random(0).shuffle(sampled_chunks)
        yield from sampled_chunks
        return
    rows_per_chunk = -(-row_count // len(sampled_chunks))
    for chunk in sampled_chunks:
        skipped_offsets = chunk.skipped_offsets
        asked = [offset for offset in range(chunk.row_count) if offset not in skipped_offsets]
        first = max(0, len(asked) - rows_per_chunk) // 2
        kept = set(asked[first : first + rows_per_chunk])
        left_out = tuple(offset for offset in asked if offset not in kept)
        yield replace(chunk, answered_offsets=left_out + chunk.answered_offsets)
