"""A job -> what it will cost and what will fail, before anything is started or paid for.

    what is left to do -> a survey of headers -> tokens -> memory, hours and money on GPUs people rent -> advice

Tokens and failures are exact for the rows that were looked at; hours and money are estimates and say so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.progress import track

from pipeline.context import RunContext, open_family
from pipeline.errors import JobError
from pipeline.inspect.plan.gpus import GPUS, GpuEstimate, TokenLoad, estimate_gpu
from pipeline.inspect.plan.survey import Survey, SurveyedMedia, sample_chunks, survey_chunks
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.media.sample import merge_image_options, merge_video_options
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.base import get_engine_type
from pipeline.model.engines.torch.model_size import ModelSize, measure_model
from pipeline.model.families.base import Family
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.registry import format_suggestion
from pipeline.run import preflight, resume
from pipeline.types import MediaOptions, Size

SAMPLE_ROWS = 2000
DEFAULT_ANSWER_TOKENS = 128  # of an answer, where nothing better is known
MAX_PARTS_READ = 8  # of earlier answers, whose mean length is taken
IMAGE_TOKEN_BUDGETS = (2560, 1280, 640, 320, 160)  # tokens a picture, for advice
MIN_SAVED_SHARE = 0.2  # of all vision tokens: what advice must save at least


@dataclass(frozen=True, slots=True)
class Advice:
    key: str
    value: int
    saves: float  # share of all vision tokens
    changes: float  # share of media that would be shown smaller


@dataclass(frozen=True, slots=True)
class JobPlan:
    name: str
    rows: int
    rows_left: int
    survey: Survey
    answer_tokens: float
    answers_known: int  # earlier answers that this is the mean of
    max_new_tokens: int
    load: TokenLoad
    model: ModelSize | None
    offers: tuple[GpuEstimate, ...]
    advice: tuple[Advice, ...]
    cost: float | None = None  # where tokens have a price

    @property
    def rows_per_surveyed_row(self) -> float:
        """Rows that each surveyed row stands for."""
        return self.rows_left / self.survey.rows if self.survey.rows else 0.0


def plan_job(
    job: Job,
    *,
    sample_rows: int | None = SAMPLE_ROWS,
    row_limit: int | None = None,
    answer_tokens: int | None = None,
    gpu_names: Sequence[str] = (),
    price_per_hour: float | None = None,
) -> JobPlan:
    """`rows` is how many to look at; None looks at all."""
    if unknown := [name for name in gpu_names if name not in GPUS]:
        raise JobError(f"--gpu {unknown[0]}: known are {', '.join(GPUS)}{format_suggestion(unknown[0], GPUS)}")
    found = list_manifest_files(job)
    work = preflight.build_run_context(job, found)
    if problems := preflight.find_job_problems(work, found):
        raise JobError("\n".join(problems))
    store = OutputStore(work.job.output.path)
    todo = resume.build_resume_plan(work, found, Dataset(store, work.fingerprint), row_limit=row_limit)
    chunks = list(todo.remaining_chunks if sample_rows is None else sample_chunks(todo.remaining_chunks, sample_rows))
    console = Console(stderr=True)
    bar = track(chunks, "headers", console=console, transient=True, disable=not console.is_terminal)
    seen = survey_chunks(work, bar) if chunks else Survey()
    known, mean = read_answer_lengths(store, work)
    each = answer_tokens or (mean if known else min(DEFAULT_ANSWER_TOKENS, job.answer.max_new_tokens))
    load = estimate_load(seen, todo.rows_left, each)
    model = find_model_size(job)
    names = gpu_names or tuple(GPUS)
    many = max(1, math.ceil(job.workers.generate.gpus), job.model.tensor_parallel)
    return JobPlan(
        name=job.name,
        rows=todo.rows,
        rows_left=todo.rows_left,
        survey=seen,
        answer_tokens=each,
        answers_known=0 if answer_tokens else known,
        max_new_tokens=job.answer.max_new_tokens,
        load=load,
        model=model,
        offers=tuple(estimate_gpu(name, load, model, gpu_count=many, price_per_hour=price_per_hour) for name in names)
        if model
        else (),
        advice=tuple(suggest_settings(seen, job, open_family(work))),
        cost=job.engine.compute_cost(load.prompt, load.output),
    )


def estimate_load(survey: Survey, rows: int, answer_tokens: float) -> TokenLoad:
    scale = rows / survey.rows if survey.rows else 0.0
    vision, text = (sum(tokens * count for tokens, count in each.items()) for each in (survey.vision, survey.text))
    good = survey.answerable_rows * scale
    return TokenLoad(good, vision * scale, (vision + text) * scale, answer_tokens * good, survey.longest)


def find_model_size(job: Job) -> ModelSize | None:
    """None where the model is not run here."""
    if not get_engine_type(job).runs_model_here:
        return None
    folder = checkpoint_location.locate_small_files(job.model.weights, job.model.revision)
    return measure_model(
        family_loader.load_config(folder, job.model), dtype=job.model.dtype, quantize=job.model.quantize
    )


def read_answer_lengths(store: OutputStore, context: RunContext) -> tuple[int, float]:
    """How many earlier answers to the same question were read, and their mean length."""
    dataset = Dataset(store, context.fingerprint)
    lengths: list[int] = []
    for part in sorted(dataset.list_parts())[:MAX_PARTS_READ]:
        lengths += [tokens["output"] for tokens in dataset.read_part(part, ["tokens"])["tokens"].to_pylist()]
    return len(lengths), sum(lengths) / len(lengths) if lengths else 0.0


def suggest_settings(survey: Survey, job: Job, family: Family) -> list[Advice]:
    """Smaller pictures that save much: reckoned by the family on the sizes that were seen."""
    out = []
    whole = sum(count * count_media_tokens(shown, shown.model_size, family) for shown, count in survey.clips.items())
    for key, kind in (("media.max_pixels", "image"), ("media.video.max_pixels", "video")):
        clips = {shown: count for shown, count in survey.clips.items() if shown.kind == kind}
        now = sum(count * count_media_tokens(shown, shown.model_size, family) for shown, count in clips.items())
        for budget in IMAGE_TOKEN_BUDGETS:
            pixels = budget * (family.patch_size * family.merge_size) ** 2
            sizes = {
                shown: min(compute_reduced_size(shown, pixels, job, family), shown.model_size, key=math.prod)
                for shown in clips
            }
            then = sum(count * count_media_tokens(shown, sizes[shown], family) for shown, count in clips.items())
            changed = sum(count for shown, count in clips.items() if sizes[shown] != shown.model_size)
            if whole and (now - then) / whole >= MIN_SAVED_SHARE:
                out.append(Advice(key, pixels, (now - then) / whole, changed / sum(clips.values())))
    return [
        each
        for at, each in enumerate(out)
        if at < 1 or each.key != out[at - 1].key or each.saves > 1.2 * out[at - 1].saves
    ]


def compute_reduced_size(media: SurveyedMedia, max_pixels: int, job: Job, family: Family) -> Size:
    if media.kind == "image":
        return family.fit_image_size(
            media.source_size,
            replace(merge_image_options(job.media, MediaOptions()), max_pixels=max_pixels, min_pixels=None),
        )
    ask = replace(merge_video_options(job.media, MediaOptions()), max_pixels=max_pixels, min_pixels=None)
    return family.fit_video_size(media.source_size, media.frame_count, ask)


def count_media_tokens(media: SurveyedMedia, size: Size, family: Family) -> int:
    return family.count_vision_tokens(size, media.frame_count)


def to_json_dict(plan: JobPlan) -> dict[str, Any]:
    """All of it as plain values; `survey` is of the rows looked at, `load` of all that are left."""
    seen = {name: value for name, value in vars(plan.survey).items() if name not in ("vision", "text", "clips")}
    for name in ("vision", "text"):
        counts: Counter[int] = getattr(plan.survey, name)
        seen[f"{name}_tokens"] = sum(tokens * rows for tokens, rows in counts.items())
        seen[f"rows_by_{name}_tokens"] = dict(sorted(counts.items()))
    return {**asdict(replace(plan, survey=Survey())), "survey": seen}
