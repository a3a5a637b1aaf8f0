"""The records that move through the pipeline, in order of appearance. All are frozen and picklable.

    Item -> Clip -> Request -> Reply -> Row          a step that fails returns a Failure instead

Sizes are (width, height) in pixels everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Size = tuple[int, int]
PixelRegion = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside
FractionRegion = tuple[float, float, float, float]  # the same as fractions of width and height
ClipKind = Literal["image", "video"]
FinishReason = Literal["stop", "length"]
# pixels of the resized picture or of the original, 0..1000 or 0..1 of any
CoordinateSystem = Literal["pixels", "pixels_of_original", "thousandths", "fraction"]
TimeOrigin = Literal["clip", "source"]  # seconds since the first frame shown, or into the file
ConfidenceMap: TypeAlias = (
    "NDArray[np.float64]"  # points: a confidence, and the share of right values among those that have it
)
ConfidenceMaps = Mapping[str, ConfidenceMap]  # by the path of a field
Stage = Literal["read", "fetch", "decode", "prompt", "generate", "answer", "internal"]


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """Size and sampling of media. None means the default of the next level: media cell, row, job, family."""

    min_pixels: int | None = None  # of an image, or of one frame of a video
    max_pixels: int | None = None
    resized_width: int | None = None
    resized_height: int | None = None
    total_pixels: int | None = None  # of all frames of a video together
    fps: float | None = None
    frames: int | None = None  # exact number, evenly spaced; overrides fps
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None  # seconds
    video_end: float | None = None

    def with_defaults(self, defaults: MediaOptions) -> MediaOptions:
        options = {option.name: getattr(self, option.name) for option in fields(self)}
        return replace(defaults, **{name: value for name, value in options.items() if value is not None})


@dataclass(frozen=True, slots=True)
class MediaRef:
    """An image or a video that a manifest refers to. It is not fetched yet."""

    source: str | bytes | tuple[str | bytes, ...]  # a URI, the bytes themselves, or the frames of a video in order
    kind: ClipKind | None = None  # what the manifest says; None: detected by content
    options: MediaOptions = MediaOptions()
    region: FractionRegion | None = None  # the part to show; None: all of it


@dataclass(frozen=True, slots=True)
class Clip:
    """An image or a video as the model sees it. An image has one frame and no times."""

    kind: ClipKind
    pixels: NDArray[np.uint8]  # [frames, 3, height, width]
    source_size: Size  # of the original, after rotation to upright
    uri: str = ""  # for answers and messages; never carries credentials
    times: tuple[float, ...] = ()  # seconds into the original, one per frame
    fps: float = 0.0  # of the sampled frames
    has_complete_uri: bool = True  # False: a secret such as a signature was removed, so `uri` cannot be fetched
    region: PixelRegion | None = None  # the part of the original that `pixels` show; None: all of it
    is_truncated: bool = False  # the file of the video ends early

    @property
    def size(self) -> Size:
        return self.pixels.shape[3], self.pixels.shape[2]

    @property
    def source_region(self) -> PixelRegion:
        """The part of the original that the model sees."""
        return self.region or (0, 0, *self.source_size)

    @property
    def source_region_size(self) -> Size:
        left, top, right, bottom = self.source_region
        return right - left, bottom - top


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat: text and media in order. Preparation replaces each MediaRef with its Clip."""

    role: str
    parts: tuple[str | MediaRef | Clip, ...]


@dataclass(frozen=True, slots=True)
class RetryHistory:
    """What happened to an item in earlier generations of its chunk."""

    attempts: int = 0
    rejected_answers: int = 0  # answers that did not fit the schema; the next request is sampled differently


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the manifest: what to ask about which media."""

    id: str
    question: str  # a hash of everything that is asked
    turns: tuple[Turn, ...]
    kept_values: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    history: RetryHistory = RetryHistory()
    media_versions: tuple[str, ...] | None = None  # of the URIs of its media, where input.version asks for them


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled. The same seed gives the same answer in any batch, in bfloat16 up to rounding."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_thinking_tokens: int | None = None  # up to `</think>`; None: the model does not think


@dataclass(frozen=True, slots=True)
class Continuation:
    """Text that may follow a prompt. An engine says how probable it is there."""

    token_ids: tuple[int, ...]  # that follow `input_ids`; empty where another program encodes the prompt
    scored_from: int  # the tokens before are given; the probability is that of the others
    text: str  # what the scored tokens say, without what ends the turn
    question: str = ""  # what the given tokens add to the end of the last turn


class Pooling(NamedTuple):
    """How a vector is made of the states of a model."""

    source: Literal["language", "vision"]
    method: Literal["last", "mean"]


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that an engine needs to answer one item.

    Engines that build their own prompt use `turns`; the others use `input_ids` and `positions`. A request with
    continuations asks for their probabilities, one with a pooling for a vector, and nothing is written.
    """

    id: str
    turns: tuple[Turn, ...]  # the chat, with Clips
    input_ids: NDArray[np.int32]  # [tokens]; one pad token for each vision token
    positions: NDArray[np.int32]  # [3, tokens]: time, height, width
    vision_tokens: int = 0
    sampling: Sampling = Sampling()
    schema_text: str | None = None  # the JSON Schema that guides the answer
    wants_confidence: bool = False  # the reply should say how probable each of its tokens was
    example_clips: int = 0  # that stand before those of the row, in the job's examples
    estimated_tokens: int = 0  # of a prompt that another program encodes; `input_ids` are then empty
    continuations: tuple[Continuation, ...] = ()
    pooling: Pooling | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.input_ids) or self.estimated_tokens

    def count_tokens(self, reply: Reply) -> TokenCounts:
        """What a reply cost. Vision tokens that are only estimated do not count."""
        vision = self.vision_tokens if len(self.input_ids) else 0
        return TokenCounts(vision, reply.prompt_tokens or self.prompt_tokens, reply.output_tokens)

    @property
    def clips(self) -> tuple[Clip, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Clip))

    @property
    def row_clips(self) -> tuple[Clip, ...]:
        """Those that the row itself shows."""
        return self.clips[self.example_clips :]


class TokenLogprob(NamedTuple):
    end: int  # where the text of the token ends in the text of the reply
    logprob: float | None  # None where nothing was chosen: the grammar forced it


@dataclass(frozen=True, slots=True)
class Reply:
    """What the engine generated for a request."""

    id: str
    text: str
    finish: FinishReason = "stop"  # "length": the budget ended before the answer
    output_tokens: int = 0
    thinking: str | None = None
    logprob: float | None = None  # mean log-probability of the tokens of the answer
    prompt_tokens: int | None = None  # as a server counts them
    flags: tuple[str, ...] = ()
    token_logprobs: Sequence[TokenLogprob] = ()  # of the tokens of the text, where the engine knows them
    continuation_logprobs: tuple[float, ...] = ()  # of the request's continuations, in their order
    vector: NDArray[np.float32] | None = field(default=None, compare=False)  # where the request has a pooling
    latency_s: float | None = field(default=None, compare=False)  # since the engine accepted the request


class TokenCounts(NamedTuple):
    vision: int = 0
    prompt: int = 0  # vision tokens included
    output: int = 0


NO_TOKENS = TokenCounts()


def add_counts(*counts: TokenCounts) -> TokenCounts:
    return TokenCounts(*map(sum, zip(*counts, strict=True)))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an item has no answer."""

    id: str
    stage: Stage
    kind: str
    message: str
    attempts: int = 1
    text: str | None = None  # the reply, where there is one that cannot be used
    discarded_tokens: TokenCounts = NO_TOKENS  # of all replies


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What the output records about an image or a video: the original, and what the model saw of it."""

    kind: str
    uri: str
    width: int
    height: int
    model_width: int
    model_height: int
    frames: int
    times: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One answered item, without the columns that are constant in a part."""

    id: str
    question: str
    kept_values: Mapping[str, Any]
    text: str
    answer: Mapping[str, Any] | None
    finish: FinishReason
    media: tuple[MediaInfo, ...]
    vision_tokens: int
    prompt_tokens: int
    output_tokens: int
    attempts: int = 1
    thinking: str | None = None
    logprob: float | None = None
    confidence: Any = None  # of each value of the answer, in its shape
    probabilities: Mapping[str, float] | None = None  # of each of the job's choices
    embedding: NDArray[np.floating[Any]] | None = field(default=None, compare=False)
    latency_s: float | None = None
    raw: str | None = None  # the model's own JSON, where geometry or repair changed it
    flags: tuple[str, ...] = ()  # what was changed: repaired, clamped, ...
    violations: tuple[str, ...] = ()  # what the schema doubts, in sentences
    discarded_tokens: TokenCounts = NO_TOKENS  # of replies that were worse than the one in the row

    @property
    def tokens(self) -> TokenCounts:
        return TokenCounts(self.vision_tokens, self.prompt_tokens, self.output_tokens)


# What the stages pass on, one entry per row of a chunk, in the order of the manifest.
ReadItem = tuple[Item, Failure | None]  # from the manifest; a Failure where the row cannot be read
PreparedItem = tuple[Item, Request | Failure]  # from preparation
SentItem = tuple[Item, Request | Failure | None]  # to a replica; it prepares those without a request itself
Outcome = tuple[Item, Row | Failure]  # from the engine, ready to be committed
