"""A job, as pydantic models: every key, its type, its default and what it means. The only place.

`pipeline.job.load_job` reads one from YAML; `python -m pipeline check --explain` prints this file.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def product(value: Any) -> Any:
    """`1280*28*28` as people write pixel budgets."""
    if isinstance(value, str) and re.fullmatch(r"\s*[\d_]+(\s*\*\s*[\d_]+)*\s*", value):
        return math.prod(int(factor) for factor in value.split("*"))
    return value


def size(value: Any) -> Any:
    """`64MiB` as people write bytes."""
    match = re.fullmatch(r"\s*([\d_.]+)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match and match[2].upper() in UNITS:
        return int(float(match[1].replace("_", "")) * UNITS[match[2].upper()])
    return value


def listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Pixels = Annotated[int, BeforeValidator(product), Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(size), Field(gt=0)]
Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def key(text: str, default: Any = ..., *, answers: bool = True, **more: Any) -> Any:
    """A key with its one-line meaning. `answers`: a change of it changes what a model would say."""
    return Field(default, description=text, json_schema_extra={"answers": answers}, **more)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Input(Section):
    manifest: Names = key(
        "Parquet, JSONL or CSV files, or a folder of media: any fsspec URL, glob, folder, or a list", min_length=1
    )
    id: str | None = key("column that names a row; without it a hash of what the row asks", None)
    media: Names = key("column(s) with a URI, a list of URIs, or bytes; image or video is told by content", ())
    messages: str | None = key(
        "column with a chat; `messages` is used where the manifest has one and no prompt is given", None
    )
    keep: Names = key("manifest columns carried to the output", ())
    roots: Names = key("folders that local paths may point into; default: the folder of a local manifest", ())
    hosts: Names = key(
        "hosts that http(s) URIs may name: host, host:port or *.domain; "
        "one named in full may have a private address; default: any global address",
        (),
    )


class Prompt(Section):
    system: str | None = key("the system message; default: the model's own", None)
    user: str | None = key("the question; {column} is filled from the row; default: the schema's own", None)


class Rope(Section):
    type: Literal["yarn"] = key("how positions beyond the trained length are scaled", "yarn")
    factor: float = key("by how much", gt=1)


class Context(Section):
    max_length: Positive | None = key("longest row in tokens, answer included; default: the checkpoint's", None)
    rope: Rope | None = key("stretch positions for a longer context", None)


class Model(Section):
    weights: str = key("hub id, folder, s3:// folder, or builtin:NAME")
    revision: str | None = key("branch, tag or commit of a hub id", None)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto: as the checkpoint says; float16 is computed as float32 on a CPU", "auto"
    )
    attention: Literal["auto", "sdpa"] = key("auto: packed attention of torch itself", "auto")
    quantize: Literal["int4"] | None = key("round a bf16 checkpoint's language model at load", None)
    tensor_parallel: Positive = key("GPUs (or processes on CPU) that share one copy of the model", 1, answers=False)
    context: Context = key("how long a row may be", Context())
    overrides: dict[str, Any] = key("keys of the checkpoint's config.json to change", {})


class TorchEngine(Section):
    kind: Literal["torch"] = key("our own engine, on torch and transformers", "torch", answers=False)
    slots: Positive | None = key("rows decoded at once; default: by memory", None, answers=False)
    kv_tokens: Positive | None = key("tokens of key-value cache; default: by memory", None, answers=False)
    patches: Positive | None = key("vision patches encoded in one call; default: by memory", None, answers=False)
    prefill_tokens: Positive | None = key("prompt tokens computed in one step; default 4096", None, answers=False)
    hang_s: float = key("a step that takes longer ends the replica, which is started anew", 600.0, gt=0, answers=False)


class ScriptedEngine(Section):
    kind: Literal["scripted"] = key("replies by rule, for tests of everything around the model")
    replies: dict[str, str] = key("text in the prompt -> reply; {id} and {prompt} are filled", {})
    default: str = key("the reply when no rule fits", "{prompt}")
    delay_ms: float = key("service time of a row", 0.0, ge=0, answers=False)
    slots: Positive = key("rows answered at once", 8, answers=False)


class VllmEngine(Section):
    """Any other argument of vLLM's engine is passed on; one that vLLM does not know is refused."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: Literal["vllm"] = key("vLLM's engine inside the replica (pip install vlbatch[vllm])", answers=False)
    max_num_seqs: Positive | None = key("rows decoded at once; default: vLLM's", None, answers=False)
    max_num_batched_tokens: Positive | None = key("tokens computed in one step; default: vLLM's", None, answers=False)
    gpu_memory_utilization: Fraction | None = key("share of the GPU's memory; default: vLLM's", None, answers=False)
    enforce_eager: bool = key("no CUDA graphs: starts sooner, runs slower", False, answers=False)


class Price(Section):
    input: float = key("of a million prompt tokens", 0.0, ge=0)
    output: float = key("of a million answered tokens", 0.0, ge=0)


class HttpEngine(Section):
    kind: Literal["http"] = key("any server that speaks the OpenAI protocol", answers=False)
    url: str = key("its address, up to /v1", answers=False, pattern="^https?://")
    model: str | None = key("the model's name there; default: the only one it serves", None)
    api_key: SecretStr | None = key("from the environment: ${KEY}", None, answers=False)
    concurrency: Positive = key("requests under way at once", 64, answers=False)
    timeout_s: float = key("for one request, to its last byte", 600.0, gt=0, answers=False)
    patience_s: float = key("of waits in which a busy or absent server is asked again", 900.0, gt=0, answers=False)
    send: Literal["pixels", "uri"] = key(
        "what the server gets: our pixels; or the URIs of pictures on the web, which it fetches and resizes itself, "
        "but no signed ones",
        "pixels",
    )
    jpeg: int | None = key(
        "send pixels as JPEG of this quality; default: as PNG, which loses nothing", None, ge=1, le=100
    )
    video: Literal["frames", "native"] = key(
        "frames as pictures with their times, or one video as vLLM reads it", "frames"
    )
    coordinates: Literal["pixels", "thousandths"] | None = key(
        "how the model there writes boxes: pixels of what it was sent, or 0..1000; default: as model.weights", None
    )
    guide: Literal["auto", "json_schema", "guided_json", "json_object", "none"] = key(
        "how the schema is sent; auto: the first of these that the server takes", "auto", answers=False
    )
    price: Price | None = key("what tokens cost, in your currency", None, answers=False)
    body: dict[str, Any] = key("more keys of each request's body; null takes one of ours away", {})


Engine = Annotated[TorchEngine | ScriptedEngine | VllmEngine | HttpEngine, Field(discriminator="kind")]


class Video(Section):
    fps: float | None = key("frames looked at per second of video", 2.0, gt=0)
    frames: Positive | None = key("exactly so many frames, evenly spread; wins over fps", None)
    min_frames: Positive = key("never fewer, where there are so many", 4)
    max_frames: Positive = key("never more", 768)
    min_pixels: Pixels | None = key("of a frame; default: the family's", None)
    max_pixels: Pixels | None = key("of a frame; default: the family's", None)
    total_pixels: Pixels | None = key("of all frames together; default: the family's", None)


class Media(Section):
    min_pixels: Pixels | None = key(
        "smaller pictures are enlarged to it; 256*28*28 is understood; default: the checkpoint's", None
    )
    max_pixels: Pixels | None = key("larger pictures are reduced to it; default: the checkpoint's", None)
    video: Video = key("which frames, and how large", Video())
    fast_decode: bool = key("decode large JPEGs at reduced scale: faster, pixels off by 0.4 of 255 on average", False)
    add_vision_id: bool = key("label media in the prompt: 'Picture 1: '", False)
    tolerate_truncated: bool = key("use what there is of a cut-off picture", False)


class Thinking(Section):
    max_tokens: Positive = key("tokens a Thinking checkpoint may spend before its answer", 2048)


class Answer(Section):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    schema_: str | None = key(
        "a name from schemas/, path.py:Model, or a .json JSON Schema; without it the answer is text",
        None,
        alias="schema",
    )
    max_new_tokens: Positive = key("budget of an answer", 512)
    temperature: float = key("0 is greedy", 0.0, ge=0, le=5)
    top_p: float = key("sample from the likeliest tokens that hold this share", 1.0, gt=0, le=1)
    top_k: int = key("sample from so many likeliest tokens; 0: all", 0, ge=0)
    seed: int = key("a row's sampling depends on (seed, id, attempt) only", 0)
    guided: bool = key("with a schema: let the model write nothing but what fits it", True)
    retries: int = key("ask again, so often, when the answer does not validate", 0, ge=0, le=20)
    thinking: Thinking | None = key("for Thinking checkpoints", None)


class Pool(Section):
    min: Positive = key("workers at the start", 1)
    max: Positive | None = key("workers at most; default: what the cluster holds", None)
    cpus: float = key("CPUs of one worker", 1.0, ge=0)
    memory: Bytes | None = key("bytes that Ray sets aside for one worker", None)

    @model_validator(mode="after")
    def max_is_not_below_min(self) -> Pool:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class GpuPool(Pool):
    gpus: float = key(
        "GPUs of one replica, as many as model.tensor_parallel, or a part of one; 0 runs on CPU", 0.0, ge=0
    )
    accelerator: str | None = key("only on nodes with this GPU, by Ray's name: H100, A100-80G, L4, ...", None)


class Workers(Section):
    prepare: Pool = key("actors that fetch, decode and resize", Pool())
    generate: GpuPool = key("replicas of the model", GpuPool())


class ImageLimits(Section):
    bytes: Bytes = key("of the file; 64MiB is understood", 64 * 2**20)
    pixels: Pixels = key("as its header says", 180_000_000)


class VideoLimits(Section):
    bytes: Bytes = key("of the file; 8GiB is understood", 8 * 2**30)
    pixels_per_frame: Pixels = key("as its header says", 36_000_000)
    duration_s: float = key("of the whole file", 14400.0, gt=0)


class Limits(Section):
    image: ImageLimits = key("of one picture", ImageLimits())
    video: VideoLimits = key("of one video", VideoLimits())
    deadline_s: float = key(
        "for fetching and decoding one row; each frame of a video adds a quarter second", 120.0, gt=0
    )
    error_rate: Fraction = key("of the last 1,000 rows; above it the run stops and says why; 1 never stops", 0.05)


class Output(Section):
    path: str = key("folder for the answers: any fsspec URL")
    chunk_rows: Positive | None = key(
        "rows that are prepared, answered and committed together; default: by media", None
    )


class Job(Section):
    """One run, fully described."""

    name: str = key("what to call it in logs and listings", pattern=r"^[\w.-]+$", answers=False)
    input: Input = key("what to look at", answers=False)
    prompt: Prompt = key("what to ask", Prompt())
    model: Model = key("which model")
    engine: Engine = key("what runs it", TorchEngine(), answers=True)
    media: Media = key("how pictures and videos are shown to the model", Media())
    answer: Answer = key("what comes back", Answer())
    workers: Workers = key("how many, and on what", Workers(), answers=False)
    limits: Limits = key("per row; a breach is an error row", Limits(), answers=False)
    output: Output = key("where to", answers=False)

    @field_validator("engine", mode="before")
    @classmethod
    def engine_is_ours_unless_named(cls, engine: Any) -> Any:
        return {"kind": "torch", **engine} if isinstance(engine, dict) else engine

    @model_validator(mode="after")
    def a_replica_has_a_gpu_for_each_share(self) -> Job:
        gpus, shares = self.workers.generate.gpus, self.model.tensor_parallel
        if (shares > 1 and gpus not in (0, shares)) or (shares == 1 and gpus > 1):
            raise ValueError(
                f"workers.generate.gpus is {gpus:g} and model.tensor_parallel is {shares}: a replica has one GPU for "
                "each share of the model, so both must be the same (or gpus 0, to run on CPU)"
            )
        return self

    @field_validator("output")
    @classmethod
    def output_is_not_a_file(cls, output: Output) -> Output:
        if output.path.endswith((".parquet", ".jsonl")):
            raise ValueError(f"path is a folder, not a file: {output.path}")
        return output

    def cost(self, prompt_tokens: float, output_tokens: float) -> float | None:
        """Of so many tokens, in the job's currency; None where they have no price."""
        price = self.engine.price if isinstance(self.engine, HttpEngine) else None
        return None if price is None else (price.input * prompt_tokens + price.output * output_tokens) / 1e6
