"""Predicts what a job costs and which rows fail, before anything is started or paid for.

A survey reads the headers of the media of the rows that are left. Its tokens become memory, hours and money on GPUs,
and advice on smaller media. Tokens and failures are exact for the surveyed rows; hours and money are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from pipeline.context import RunContext, open_family
from pipeline.errors import JobError
from pipeline.inspect.figures import sum_weighted
from pipeline.inspect.plan import measured
from pipeline.inspect.plan.advice import Advice, suggest_settings
from pipeline.inspect.plan.gpus import GPUS, GpuEstimate, TokenLoad, estimate_gpu
from pipeline.inspect.plan.measured import MeasuredSpeed
from pipeline.inspect.plan.shard_advice import ShardAdvice, advise_shards
from pipeline.inspect.plan.simulation import Requests, count_requests
from pipeline.inspect.plan.survey import MAX_INLINE_BYTES, Survey, sample_chunks, survey_chunks
from pipeline.inspect.progress_bar import show_progress
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import ManifestFile, list_manifest_files
from pipeline.manifest.row_reader import RowReader
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.base import get_engine_type
from pipeline.model.engines.torch.model_size import ModelSize, measure_model
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.registry import format_suggestion
from pipeline.run import preflight, resume
from pipeline.run.chunk_size import settle_chunk_size

SAMPLE_ROWS = 2000
DEFAULT_ANSWER_TOKENS = 128  # of an answer, if no earlier answers tell
MAX_PARTS_READ = 8  # of earlier answers


@dataclass(frozen=True, slots=True)
class JobPlan:
    """The field names are keys of `plan --json`."""

    name: str
    rows: int
    rows_left: int
    chunks: str  # how many rows they have, and why
    requests: Requests | None  # for a million rows, if the output is in an object store
    survey: Survey
    answer_tokens: float
    answers_known: int  # the number of earlier answers that `answer_tokens` is the mean of
    max_new_tokens: int
    load: TokenLoad
    model: ModelSize | None
    offers: tuple[GpuEstimate, ...]
    advice: tuple[Advice, ...]
    shards: ShardAdvice | None = None  # if one driver cannot feed the replicas
    cost: float | None = None  # if tokens have a price
    tokens_are_estimates: bool = False  # of prompts, if the program that runs the model counts them

    @property
    def rows_per_surveyed_row(self) -> float:
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
    """Survey a sample of the rows; `sample_rows=None` surveys all of them."""
    if unknown := [name for name in gpu_names if name not in GPUS]:
        raise JobError(f"--gpu {unknown[0]}: known are {', '.join(GPUS)}{format_suggestion(unknown[0], GPUS)}")
    manifest_files = list_manifest_files(job)
    context = preflight.build_run_context(job, manifest_files)
    if problems := preflight.find_job_problems(context, manifest_files):
        raise JobError("\n".join(problems))
    dataset = Dataset(OutputStore(context.job.output.path), context.fingerprint)
    chunk_size = settle_chunk_size(context, manifest_files, dataset)
    context = chunk_size.apply_to(context)
    resume_plan = resume.build_resume_plan(context, manifest_files, dataset, row_limit=row_limit)
    survey = survey_rows(context, manifest_files, resume_plan.remaining_chunks, sample_rows)
    known_answers, mean_tokens = predict_answer_tokens(job, dataset, answer_tokens)
    load = estimate_load(survey, resume_plan.rows_left, mean_tokens)
    family = open_family(context)
    model = find_model_size(job) if family.knows_model else None
    speeds = find_measured_speeds(job) if model else []
    gpu_count = max(1, math.ceil(job.workers.generate.gpus), job.model.tensor_parallel)
    offers = tuple(
        estimate_gpu(name, load, model, gpu_count=gpu_count, price_per_hour=price_per_hour, speeds=speeds)
        for name in gpu_names or GPUS
        if model
    )
    return JobPlan(
        name=job.name,
        rows=resume_plan.rows,
        rows_left=resume_plan.rows_left,
        chunks=chunk_size.describe(),
        requests=None if dataset.store.is_local else count_requests(1e6 / chunk_size.rows),
        survey=survey,
        answer_tokens=mean_tokens,
        answers_known=known_answers,
        max_new_tokens=job.answer.max_new_tokens,
        load=load,
        model=model,
        offers=offers,
        advice=tuple(suggest_settings(survey, job, family)),
        shards=advise_shards(context.job, resume_plan.rows_left, survey.row_bytes, offers),
        cost=job.engine.compute_cost(load.prompt, load.output),
        tokens_are_estimates=not family.knows_model,
    )


def survey_rows(
    context: RunContext, manifest_files: Sequence[ManifestFile], chunks: Sequence[Chunk], sample_rows: int | None
) -> Survey:
    max_inline_bytes = math.inf
    if sample_rows is not None:
        reads_media = RowReader(context.job, manifest_files[0], context.schema_prompt).reads_media
        chunks = tuple(sample_chunks(chunks, sample_rows, whole=reads_media))
        max_inline_bytes = MAX_INLINE_BYTES
    if not chunks:
        return Survey()
    return survey_chunks(context, show_progress(chunks, "headers", len(chunks)), max_inline_bytes)


def predict_answer_tokens(job: Job, dataset: Dataset, answer_tokens: int | None) -> tuple[int, float]:
    """The number of earlier answers that tell it, and the mean. `answer_tokens` is what a user says."""
    if not job.answer.is_written:
        return 0, 0
    if answer_tokens:
        return 0, answer_tokens
    known_answers, mean_tokens = read_answer_lengths(dataset)
    return known_answers, mean_tokens if known_answers else min(DEFAULT_ANSWER_TOKENS, job.answer.max_new_tokens)


def read_answer_lengths(dataset: Dataset) -> tuple[int, float]:
    """How many earlier answers to the same question were read, and their mean length in tokens."""
    lengths: list[int] = []
    for part in islice(dataset.list_parts(), MAX_PARTS_READ):
        lengths += [tokens["output"] for tokens in dataset.read_part(part, ["tokens"])["tokens"].to_pylist()]
    return len(lengths), sum(lengths) / len(lengths) if lengths else 0.0


def estimate_load(survey: Survey, row_count: int, answer_tokens: float) -> TokenLoad:
    scale = row_count / survey.rows if survey.rows else 0.0
    vision, text = (sum_weighted(counts) for counts in (survey.vision, survey.text))
    answered_rows = survey.answerable_rows * scale
    prompt = (vision + text) * scale
    return TokenLoad(
        answered_rows,
        vision * scale,
        prompt,
        answer_tokens * answered_rows,
        survey.longest,
        survey.copied * scale,
        survey.copied_vision * scale,
    )


def find_model_size(job: Job) -> ModelSize | None:
    """None if the model runs elsewhere."""
    if not get_engine_type(job).runs_model_here:
        return None
    folder = checkpoint_location.locate_small_files(job.model.weights, job.model.revision)
    config = family_loader.load_config(folder, job.model)
    size = measure_model(config, dtype=job.model.dtype, quantize=job.model.quantize)
    is_vision_only = job.answer.embedding is not None and job.answer.embedding.source == "vision"
    return size.without_text() if is_vision_only else size


def find_measured_speeds(job: Job) -> list[MeasuredSpeed]:
    """With the job's engine and family."""
    folder = checkpoint_location.locate_small_files(job.model.weights, job.model.revision)
    family = family_loader.load_config(folder, job.model)["model_type"]
    return [speed for speed in measured.read_table() if (speed.engine, speed.family) == (job.engine.kind, family)]


def to_json_dict(plan: JobPlan) -> dict[str, Any]:
    """Plain values: `survey` counts the surveyed rows, `load` all rows that are left."""
    survey = {name: value for name, value in vars(plan.survey).items() if name not in ("vision", "text", "clips")}
    for name, counts in (("vision", plan.survey.vision), ("text", plan.survey.text)):
        survey[f"{name}_tokens"] = sum_weighted(counts)
        survey[f"rows_by_{name}_tokens"] = dict(sorted(counts.items()))
    return {**asdict(replace(plan, survey=Survey())), "survey": survey}
