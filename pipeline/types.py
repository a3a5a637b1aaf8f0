"""The records that move through the pipeline, in the order they appear. All frozen, all picklable.

    Item -> Clip -> Request -> Reply -> Row          a step that fails leaves a Failure in its place

Sizes are (width, height) in pixels, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Size = tuple[int, int]
FinishReason = Literal["stop", "length"]
CoordinateSystem = Literal["pixels", "thousandths"]  # of the resized picture, or 0..1000 of any
TimeOrigin = Literal["clip", "source"]  # seconds since the first frame shown, or into the file
Stage = Literal["read", "fetch", "decode", "prompt", "generate", "answer", "internal"]


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """How large and which frames. None leaves it to whoever is asked next: part, row, job, family."""

    min_pixels: int | None = None  # of an image, or of one frame of a video
    max_pixels: int | None = None
    resized_width: int | None = None
    resized_height: int | None = None
    total_pixels: int | None = None  # of all frames of a video together
    fps: float | None = None
    frames: int | None = None  # exactly so many, evenly spread; wins over fps
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None  # seconds
    video_end: float | None = None

    def with_defaults(self, defaults: MediaOptions) -> MediaOptions:
        """What this says, and where it is silent what the other says."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(defaults, **{name: value for name, value in said.items() if value is not None})


@dataclass(frozen=True, slots=True)
class MediaRef:
    """Something to look at, as a manifest names it: not fetched yet.

    `source` is a URI, the bytes themselves, or the pictures of one video in order. `kind` is what
    the manifest claims; without it the content tells. `ask` is what the row or the part says.
    """

    source: str | bytes | tuple[str | bytes, ...]
    kind: Literal["image", "video"] | None = None
    options: MediaOptions = MediaOptions()


@dataclass(frozen=True, slots=True)
class Clip:
    """A medium as the model will see it: resized frames that still know where they come from.

    An image is a clip of one frame without times. `fps` is the rate of the sampled frames.
    """

    kind: Literal["image", "video"]
    pixels: NDArray[np.uint8]  # [frames, 3, height, width]
    source_size: Size  # of the original, upright
    uri: str = ""  # what to call it in answers and messages; never carries credentials
    times: tuple[float, ...] = ()  # seconds into the original, one a frame
    fps: float = 0.0
    has_complete_uri: bool = True  # nothing was taken from `uri` that fetching it again would need, as a signature

    @property
    def size(self) -> Size:
        return self.pixels.shape[3], self.pixels.shape[2]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat. Parts are text and media, in order; prepared, the media are Clips."""

    role: str
    parts: tuple[str | MediaRef | Clip, ...]


@dataclass(frozen=True, slots=True)
class RetryHistory:
    """What became of a row in earlier generations of its chunk."""

    attempts: int = 0
    rejected_answers: int = 0  # that were of no use: the model is asked another way


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the manifest: an id and a question. `question` is a hash of all that is asked."""

    id: str
    question: str
    turns: tuple[Turn, ...]
    kept_values: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    history: RetryHistory = RetryHistory()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The same seed gives the same answer, whoever else is in the batch."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_thinking_tokens: int | None = None  # how many may be spent before `</think>`; None: not a thinking model


@dataclass(frozen=True, slots=True)
class Request:
    """All an engine needs to answer for one item, whichever engine it is.

    `turns` is the conversation with its Clips in place, for engines that build their own prompt;
    `input_ids` and `positions` are the family's, for engines that take them as they are.
    """

    id: str
    turns: tuple[Turn, ...]
    input_ids: NDArray[np.int32]  # [tokens]; one pad token for each vision token
    positions: NDArray[np.int32]  # [3, tokens]: time, height, width
    vision_tokens: int = 0
    sampling: Sampling = Sampling()
    schema_text: str | None = None  # JSON Schema, as text, that the answer must fit

    @property
    def clips(self) -> tuple[Clip, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Clip))


@dataclass(frozen=True, slots=True)
class Reply:
    """What the engine said. `finish` is "length" when the budget ended before the answer did."""

    id: str
    text: str
    finish: FinishReason = "stop"
    output_tokens: int = 0
    thinking: str | None = None
    logprob: float | None = None  # mean log-probability of the tokens of the answer
    prompt_tokens: int | None = None  # as a server counts them, where one does
    flags: tuple[str, ...] = ()
    latency_s: float | None = field(default=None, compare=False)  # from when the engine took the request


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one item has no answer. `text` keeps what a model said when it cannot be used."""

    id: str
    stage: Stage
    kind: str
    message: str
    attempts: int = 1
    text: str | None = None


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What is told about one medium in the output: the original and what the model saw of it."""

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
    """One answered row, before the columns that are the same for a whole part."""

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
    latency_s: float | None = None
    raw: str | None = None  # the model's own JSON where geometry or repair changed it
    flags: tuple[str, ...] = ()  # what was done to the answer: repaired, clamped, ...
    violations: tuple[str, ...] = ()  # what the schema doubts about it, in sentences


ReadItem = tuple[Item, Failure | None]


PreparedItem = tuple[Item, Request | Failure]


Outcome = tuple[Item, Row | Failure]
