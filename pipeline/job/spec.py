"""Every key of a job, with its type, default and meaning, as pydantic models.

`pipeline.job.job_loader` reads a job from YAML, and `check --explain` prints the keys. The keys of the section `engine`
stand with their engines in `pipeline/model/engines`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializeAsAny, field_validator, model_validator

from pipeline.job.answer_section import AnswerSection
from pipeline.job.example_section import ExampleSection
from pipeline.job.key_types import ByteCount, Fraction, JobSection, NameList, PixelCount, PositiveInt, define_key
from pipeline.job.model_section import ModelSection
from pipeline.job.step_settings import StepList
from pipeline.registry import ENGINES, load_registered

DEFAULT_ENGINE = "torch"


class InputSection(JobSection):
    manifest: NameList = define_key(
        "Parquet, JSONL, CSV or WebDataset tars, a Delta, Iceberg or Lance table, a data set of the Hugging Face hub, "
        "or media: any fsspec URL, glob, {000..999}, folder, or a list",
        min_length=1,
    )
    id: str | None = define_key("column that names a row; without it a hash of what the row asks", None)
    media: NameList = define_key(
        "column(s) with a URI, a list of URIs, or bytes, also inside a column: image.bytes; content tells the kind", ()
    )
    require: Literal["all", "any"] = define_key(
        "all: a row of several media of which one is missing is an error row; any: it is asked with the others", "all"
    )
    version: Literal["etag", "mtime", "none"] = define_key(
        "etag or mtime: a file that was replaced under the same URI is asked about again; none: the URI stands for it",
        "none",
    )
    messages: str | None = define_key(
        "column with a chat; `messages` is used where the manifest has one and no prompt is given", None
    )
    keep: NameList = define_key("manifest columns carried to the output", ())
    roots: NameList = define_key("folders that local paths may point into; default: the folder of a local manifest", ())
    follow_links: bool = define_key("read what symbolic links in these folders lead to, wherever it is", False)
    hosts: NameList = define_key(
        "hosts that http(s) URIs may name: host, host:port or *.domain; "
        "only host:port may have a private address; default: any host with a public address",
        (),
    )
    stores: NameList = define_key(
        "buckets, containers and hub repositories that rows may name, or folders in them: s3://bucket, "
        "hf://datasets/owner/name; default: those of the manifest and of the output",
        (),
    )

    @field_validator("hosts")
    @classmethod
    def check_hosts_are_no_urls(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"[^/\s@?#]+", host):
                raise ValueError(f"write a host as name, name:port or *.domain, not {host or 'nothing'}")
        return hosts

    @field_validator("stores")
    @classmethod
    def check_stores_are_urls(cls, stores: tuple[str, ...]) -> tuple[str, ...]:
        for store in stores:
            if not re.match(r"[a-z0-9]+://[^/]", store):
                raise ValueError(f"write a store as s3://bucket, gs://bucket or hf://datasets/owner/name, not {store}")
        return stores


class PromptSection(JobSection):
    system: str | None = define_key("the system message; default: the model's own", None)
    user: str | None = define_key(
        "the question; {column} and {column.field} are filled from the row; default: the schema's own", None
    )

    examples: tuple[ExampleSection, ...] = define_key(
        "questions and their answers that the model sees before each row, as earlier turns of the chat", ()
    )

    @field_validator("user")
    @classmethod
    def check_user_is_not_blank(cls, user: str | None) -> str | None:
        if user is not None and not user.strip():
            raise ValueError("is empty; say what to ask, or leave it out where a schema or a chat asks")
        return user


class EngineSettings(JobSection):
    """The section `engine`. Each engine of the registry has a subclass with its keys."""

    kind: str

    def compute_cost(self, prompt_tokens: float, output_tokens: float) -> float | None:
        """In the job's currency; None where tokens have no price."""
        return None

    def get_served_model(self) -> str | None:
        """The name by which a server knows its model."""
        return None


def parse_engine_section(section: Any) -> Any:
    """Validate the keys with the settings class of the engine that `kind` names."""
    if not isinstance(section, dict):
        return section
    kind = section.get("kind", DEFAULT_ENGINE)
    if not isinstance(kind, str) or kind not in ENGINES:
        raise ValueError(f"kind must be one of {', '.join(ENGINES)}")
    return load_registered(ENGINES, kind, "engine.kind").Settings.model_validate({**section, "kind": kind})


class VideoSection(JobSection):
    fps: float | None = define_key("frames looked at per second of video", 2.0, gt=0)
    frames: PositiveInt | None = define_key("exactly so many frames, evenly spread; wins over fps", None)
    min_frames: PositiveInt = define_key("never fewer, where there are so many", 4)
    max_frames: PositiveInt = define_key("never more", 768)
    min_pixels: PixelCount | None = define_key("of a frame; default: the family's", None)
    max_pixels: PixelCount | None = define_key("of a frame; default: the family's", None)
    total_pixels: PixelCount | None = define_key("of all frames together; default: the family's", None)


class MediaSection(JobSection):
    min_pixels: PixelCount | None = define_key(
        "smaller pictures are enlarged to it; 256*28*28 is understood; default: the checkpoint's", None
    )
    max_pixels: PixelCount | None = define_key("larger pictures are reduced to it; default: the checkpoint's", None)
    video: VideoSection = define_key("which frames, and how large", VideoSection())
    fast_decode: bool = define_key(
        "decode large JPEGs at reduced scale: faster, pixels off by 0.4 of 255 on average", False
    )
    add_vision_id: bool = define_key("label media in the prompt: 'Picture 1: '", False)
    tolerate_truncated: bool = define_key("use what there is of a cut-off picture or video", False)
    steps: StepList = define_key(
        "what is done to media before the model sees them, in order: names, or {name: arguments} such as "
        "{crop: {left: 0.1, top: 0, right: 0.9, bottom: 1}}, in fractions of the picture",
        (),
    )


class PoolSection(JobSection):
    min: PositiveInt = define_key("workers at the start", 1)
    max: PositiveInt | None = define_key("workers at most; default: what the cluster holds", None)
    cpus: float = define_key("CPUs of one worker", 1.0, ge=0)
    memory: ByteCount | None = define_key("bytes that Ray sets aside for one worker", None)

    @model_validator(mode="after")
    def check_max_not_below_min(self) -> PoolSection:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class GpuPoolSection(PoolSection):
    gpus: float = define_key(
        "GPUs of one replica, as many as model.tensor_parallel, or a part of one; 0 runs on CPU", 0.0, ge=0
    )
    accelerator: str | None = define_key("only on nodes with this GPU, by Ray's name: H100, A100-80G, L4, ...", None)


class WorkersSection(JobSection):
    prepare: PoolSection = define_key("actors that fetch, decode and resize", PoolSection())
    generate: GpuPoolSection = define_key("replicas of the model", GpuPoolSection())


class ImageLimitsSection(JobSection):
    bytes: ByteCount = define_key("of the file; 64MiB is understood", 64 * 2**20)
    pixels: PixelCount = define_key("as its header says", 180_000_000)


class VideoLimitsSection(JobSection):
    bytes: ByteCount = define_key("of the file; 8GiB is understood", 8 * 2**30)
    pixels_per_frame: PixelCount = define_key("as its header says", 36_000_000)
    duration_s: float = define_key("of the whole file", 14400.0, gt=0)


class BudgetSection(JobSection):
    tokens: PositiveInt | None = define_key("prompt and output tokens of all replies", None)
    gpu_hours: float | None = define_key("hours of engines, each times the GPUs of its replica", None, gt=0)
    cost: float | None = define_key("money for tokens, by engine.price", None, gt=0)


class LimitsSection(JobSection):
    image: ImageLimitsSection = define_key("of one picture", ImageLimitsSection())
    video: VideoLimitsSection = define_key("of one video", VideoLimitsSection())
    deadline_s: float = define_key(
        "for fetching and decoding one row; each frame of a video adds a quarter second", 120.0, gt=0
    )
    error_rate: Fraction = define_key(
        "of the last 1,000 rows; above it the run stops and says why; 1 never stops", 0.05
    )
    budget: BudgetSection | None = define_key(
        "what all answers to the question may cost, over all runs; then the run stops and keeps what it has", None
    )


class OutputSection(JobSection):
    path: str = define_key("folder for the answers: any fsspec URL")
    chunk_rows: PositiveInt | None = define_key(
        "rows that are committed together; default: as the output was begun, else as many as weigh 256 MiB when they "
        "are prepared, by the settings of media and by the first 32 rows; up to 12 times as many in large manifests",
        None,
    )
    slice_rows: PositiveInt | None = define_key(
        "rows that travel to a replica together and divide a chunk evenly; default: a whole chunk, or in large "
        "manifests as many as weigh 256 MiB",
        None,
    )

    @model_validator(mode="after")
    def check_slices_divide_chunks(self) -> OutputSection:
        if self.chunk_rows and self.slice_rows and self.chunk_rows % self.slice_rows:
            raise ValueError(
                f"slice_rows {self.slice_rows} does not divide chunk_rows {self.chunk_rows}; choose a divisor"
            )
        return self


class ExportSection(JobSection):
    classes: dict[str, NameList] = define_key(
        "class names in exports, and the labels in answers that mean them: {dog: [puppy, a dog], cat: []}; "
        "case does not count; default: every label is a class",
        {},
    )

    @field_validator("classes")
    @classmethod
    def check_labels_have_one_class(cls, classes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        owners: dict[str, str] = {}
        for name, labels in classes.items():
            for label in (name, *labels):
                owner = owners.setdefault(" ".join(label.split()).casefold(), name)
                if owner != name:
                    raise ValueError(f"{label!r} stands for {owner!r} and for {name!r}; name it once")
        return classes


class Job(JobSection):
    """Everything that a user says about a run."""

    name: str = define_key("what to call it in logs and listings", pattern=r"^[\w.-]+$", affects_answers=False)
    input: InputSection = define_key("what to look at", affects_answers=False)
    prompt: PromptSection = define_key("what to ask", PromptSection())
    model: ModelSection = define_key("which model")
    engine: Annotated[SerializeAsAny[EngineSettings], BeforeValidator(parse_engine_section)] = define_key(
        "what runs it", {}, validate_default=True
    )
    media: MediaSection = define_key("how pictures and videos are shown to the model", MediaSection())
    answer: AnswerSection = define_key("what comes back", AnswerSection())
    workers: WorkersSection = define_key("how many, and on what", WorkersSection(), affects_answers=False)
    limits: LimitsSection = define_key("per row; a breach is an error row", LimitsSection(), affects_answers=False)
    output: OutputSection = define_key("where to", affects_answers=False)
    export: ExportSection = define_key("what `export` writes", ExportSection(), affects_answers=False)

    @model_validator(mode="after")
    def check_gpus_match_tensor_parallel(self) -> Job:
        gpus, shares = self.workers.generate.gpus, self.model.tensor_parallel
        if (shares > 1 and gpus not in (0, shares)) or (shares == 1 and gpus > 1):
            raise ValueError(
                f"workers.generate.gpus is {gpus:g} and model.tensor_parallel is {shares}: a replica has one GPU for "
                "each share of the model, so both must be the same (or gpus 0, to run on CPU)"
            )
        return self

    @model_validator(mode="after")
    def check_budget_is_countable(self) -> Job:
        budget = self.limits.budget
        if budget and budget.cost is not None and self.engine.compute_cost(1e6, 1e6) is None:
            raise ValueError("limits.budget.cost needs engine.price, which says what tokens cost")
        if budget and budget.gpu_hours is not None and not self.workers.generate.gpus:
            raise ValueError("limits.budget.gpu_hours counts GPUs, and workers.generate.gpus is 0")
        return self

    @field_validator("output")
    @classmethod
    def check_output_is_folder(cls, output: OutputSection) -> OutputSection:
        if output.path.endswith((".parquet", ".jsonl")):
            raise ValueError(f"path is a folder, not a file: {output.path}")
        return output
