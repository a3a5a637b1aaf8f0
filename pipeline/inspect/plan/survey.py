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

from pipeline.context import Work
from pipeline.fetch.header_fetcher import Heads
from pipeline.manifest.chunks import Chunk
from pipeline.media.header import Header
from pipeline.prepare import Preparer
from pipeline.types import Asked, Clip, Failure, Request, Size

CLUSTERS = 100  # chunks that a sample is spread over: each costs reading a part of the manifest
TOGETHER = 300  # rows, from as many chunks as that takes; media that a manifest holds as bytes are in memory with them
MOST_CLIPS = 20_000  # kinds of them, by their sizes, that advice is reckoned on


@dataclass(frozen=True, slots=True)
class Shown:
    """One medium, as it is and as the model would see it."""

    kind: str
    source: Size
    size: Size
    frames: int


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
    clips: Counter[Shown] = field(default_factory=Counter)

    def add(self, outcome: Request | Failure) -> None:
        self.rows += 1
        if isinstance(outcome, Failure):
            name = f"{outcome.stage}/{outcome.kind}"
            self.failures[name] += 1
            self.examples.setdefault(name, outcome.message)
            return
        self.kinds[kind_of(outcome.clips)] += 1
        self.vision[outcome.vision_tokens] += 1
        self.text[len(outcome.input_ids) - outcome.vision_tokens] += 1
        budget = outcome.sampling.max_new_tokens + (outcome.sampling.thinking_tokens or 0)
        self.longest = max(self.longest, len(outcome.input_ids) + budget)
        for clip in outcome.clips:
            self.see(Shown(clip.kind, clip.source_size, clip.size, len(clip.pixels)))

    def see(self, shown: Shown) -> None:
        kind, pixels = shown.kind, shown.source[0] * shown.source[1]
        self.media[kind] += 1
        self.resized[kind] += shown.source != shown.size
        self.source_pixels[kind] += pixels
        self.model_pixels[kind] += shown.size[0] * shown.size[1]
        largest = self.largest.get(kind, (0, 0))
        self.largest[kind] = shown.source if pixels > largest[0] * largest[1] else largest
        self.frames += shown.frames if kind == "video" else 0
        if shown in self.clips or len(self.clips) < MOST_CLIPS:
            self.clips[shown] += 1

    @property
    def good(self) -> int:
        return self.rows - self.failures.total()


def kind_of(clips: Sequence[Clip]) -> str:
    kinds = {clip.kind for clip in clips}
    if len(kinds) > 1:
        return "mixed"
    if "image" in kinds:
        return "picture" if len(clips) == 1 else "pictures"
    return "video" if kinds else "text"


def survey(work: Work, chunks: Iterable[Chunk]) -> Survey:
    found = Survey()
    with closing(Preparer(work, fetcher=Heads, decoder=Header)) as preparer:
        for rows in together(preparer.read(chunk) for chunk in chunks):
            for _, outcome in preparer.requests(rows):
                found.add(outcome)
    return found


def together(lists: Iterable[list[Asked]]) -> Iterator[list[Asked]]:
    """So many that fetching ahead of them is seldom at its end."""
    some: list[Asked] = []
    for each in lists:
        some += each
        if len(some) >= TOGETHER:
            yield some
            some = []
    yield some


def sample(chunks: Sequence[Chunk], rows: int) -> Iterator[Chunk]:
    """About so many rows, evenly spread over evenly spread chunks; all of them where there are no more."""
    if sum(chunk.asked for chunk in chunks) <= rows:
        yield from chunks
        return
    chosen = [chunks[at] for at in evenly(len(chunks), CLUSTERS)]
    each = -(-rows // len(chosen))
    for chunk in chosen:
        left_out = {*chunk.without, *chunk.skip}
        asked = [offset for offset in range(chunk.rows) if offset not in left_out]
        kept = {asked[at] for at in evenly(len(asked), each)}
        yield replace(chunk, skip=tuple(offset for offset in asked if offset not in kept) + chunk.skip)


def evenly(count: int, wanted: int) -> list[int]:
    """
    >>> evenly(10, 3), evenly(2, 3)
    ([1, 5, 8], [0, 1])
    """
    return [*range(count)] if wanted >= count else [int((at + 0.5) * count / wanted) for at in range(wanted)]
