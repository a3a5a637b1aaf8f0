"""Builds the RunContext of a job and checks the job, without starting anything.

Paths are resolved here once, so that they mean the same in every process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from pipeline.context import RunContext, format_model_name, get_base_folder, locate_small_files, open_family
from pipeline.errors import GenerateError, JobError, OutputError
from pipeline.fetch.stores import list_stores
from pipeline.job.fingerprint import build_fingerprint_inputs, compute_fingerprint
from pipeline.job.spec import Job, MediaSection
from pipeline.manifest.column_selection import select_file_columns
from pipeline.manifest.files import ManifestFile, read_manifest_schema
from pipeline.manifest.kept_columns import unify_kept_schema
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.derivatives import describe_settings
from pipeline.model.engines.base import get_engine_type
from pipeline.model.families.base import Family
from pipeline.model.guidance.grammar import count_min_bytes, count_min_tokens
from pipeline.output.answer.geometry import find_field_meanings, find_whole_number_places
from pipeline.output.arrow_tables import list_reserved_columns
from pipeline.output.dataset import Dataset, list_questions
from pipeline.output.store import CREATE_ONLY_SCHEMES, OutputStore, open_filesystem
from pipeline.output.thread_map import map_in_threads
from pipeline.retry_policy import FIRST_CONTACT_ATTEMPTS
from pipeline.run.answer_checks import find_ability_problems, find_vector_width
from pipeline.run.examples import describe_examples, find_example_problems, load_examples
from pipeline.schema import schema_loader
from pipeline.schema.json_schema import SchemaNode
from pipeline.schema.schema import Schema
from pipeline.types import CoordinateSystem

UNKNOWN_MODEL = (
    "model.family: generic: the program that runs the model decides how prompts are written, how large pictures are "
    "shown and what is too long; `plan` estimates tokens, and answers do not say how many were of pictures"
)
COORDINATE_SENTENCES = {
    "pixels": "Write coordinates in pixels of the picture that you see, x to the right and y down.",
    "pixels_of_original": "Write coordinates in pixels of the original picture, x to the right and y down.",
    "thousandths": "Write coordinates in thousandths of the picture's width and height: x from 0 at the left to 1000 "
    "at the right, y from 0 at the top to 1000 at the bottom.",
    "fraction": "Write coordinates as fractions of the picture's width and height: x from 0 at the left to 1 at the "
    "right, y from 0 at the top to 1 at the bottom.",
}
RAY_PACKAGE_FOLDER = "/runtime_resources/working_dir_files/"  # Ray unpacks a job's working directory below it


def build_run_context(job: Job, manifest_files: Sequence[ManifestFile]) -> RunContext:
    job = resolve_paths(job, manifest_files)
    schema = schema_loader.load_answer_schema(job.answer, base_folder=get_base_folder())
    schema_prompt = build_schema_prompt(job, schema) if schema and job.prompt.user is None else None
    if job.answer.embedding and job.prompt.user is None:
        schema_prompt = ""  # media need no words
    kept_schema = read_kept_schema(job, manifest_files, schema_prompt)
    examples = load_examples(job, schema_prompt)
    adapter_identity = checkpoint_location.compute_adapter_identity(job.model)
    checkpoint_identity = ""
    if job.model.weights:
        checkpoint_identity = checkpoint_location.compute_identity(job.model.weights, job.model.revision)
    fingerprint_inputs = build_fingerprint_inputs(
        job,
        weights=checkpoint_identity,
        adapter=adapter_identity,
        schema_text=f"{schema_prompt or ''}\n{schema.text}" if schema else None,
        examples=describe_examples(job, examples),
    )
    vector_width = 0 if job.answer.embedding is None else find_vector_width(job, job.answer.embedding)
    now = datetime.now(UTC)
    return RunContext(
        job=job,
        schema=schema,
        schema_prompt=schema_prompt,
        kept_schema=kept_schema,
        fingerprint_inputs=fingerprint_inputs,
        fingerprint=compute_fingerprint(fingerprint_inputs),
        checkpoint_identity=checkpoint_identity,
        adapter_identity=adapter_identity,
        model_name=format_model_name(job),
        examples=examples,
        vector_width=vector_width,
        run_id=f"{now:%Y%m%dT%H%M%S}-{now.microsecond:05x}",  # sorts by time, also within a second
    )


def build_schema_prompt(job: Job, schema: Schema) -> str:
    """The prompt of a job without one. It tells the model how to write places, if the job says that."""
    if not job.answer.is_written:
        return schema.default_prompt or ""
    prompt = schema_loader.build_default_prompt(schema)
    if job.model.coordinates is None or not has_places(schema.json_schema):
        return prompt
    return f"{prompt}\n{COORDINATE_SENTENCES[job.model.coordinates]}"


def read_kept_schema(job: Job, manifest_files: Sequence[ManifestFile], schema_prompt: str | None) -> pa.Schema:
    """One schema for the kept columns of all files. JobError if a file lacks a column that the job names."""

    def read_schema(file: ManifestFile) -> pa.Schema:
        schema = read_manifest_schema(file)
        select_file_columns(job, file, schema, schema_prompt)  # raises if a column is missing
        return pa.schema([schema.field(name) for name in job.input.keep])

    files = manifest_files if job.input.keep else manifest_files[:1]
    return unify_kept_schema(job.input.keep, files, list(map_in_threads(read_schema, files)))


def resolve_paths(job: Job, manifest_files: Sequence[ManifestFile]) -> Job:
    """Make all paths absolute, and fill in which folders and stores rows may name where the job does not say it."""
    roots = job.input.roots or tuple(
        dict.fromkeys(
            file.base_folder.removeprefix("file://") for file in manifest_files if file.url.startswith("file://")
        )
    )
    named_folders = {"weights": job.model.weights, "adapter": job.model.adapter}
    model = {key: str(Path(name).absolute()) for key, name in named_folders.items() if name and Path(name).is_dir()}
    filesystem, path = open_filesystem(job.output.path)
    output_path = filesystem.unstrip_protocol(path).removeprefix("file://")
    access = {
        "roots": tuple(str(to_absolute_path(root)) for root in roots),
        "stores": job.input.stores or list_stores([*(file.url for file in manifest_files), output_path]),
    }
    return job.model_copy(
        update={
            "input": job.input.model_copy(update=access),
            "model": job.model.model_copy(update=model),
            "output": job.output.model_copy(update={"path": output_path}),
        }
    )


def to_absolute_path(path: str) -> Path:
    return (get_base_folder() / Path(path.removeprefix("file://")).expanduser()).absolute()


def require_rows(job: Job, manifest_files: Sequence[ManifestFile]) -> None:
    """Of any file, so the first one is enough as a rule. Before anything is written to the output."""
    if not any(next(file.open_source().list_spans(1), None) for file in manifest_files):
        raise JobError(f"input.manifest: {', '.join(job.input.manifest)} holds no rows")


def find_job_problems(context: RunContext, manifest_files: Sequence[ManifestFile]) -> list[str]:
    """The problems that would fail every row."""

    def check_columns(file: ManifestFile) -> None:
        select_file_columns(context.job, file, read_manifest_schema(file), context.schema_prompt)

    for _ in map_in_threads(check_columns, manifest_files):
        """Raises the first problem: a thousand tars are asked for their columns at once."""
    family = open_family(context)  # raises if the checkpoint's config or tokenizer is broken
    answer = context.job.answer
    schema_problems = schema_loader.find_problems(context.schema) if context.schema and answer.is_written else []
    problems = find_ability_problems(context.job)
    problems += [f"answer.schema: {problem}" for problem in schema_problems]
    problems += find_example_problems(context)
    problems += find_pixel_problems(context.job.media, family)
    problems += find_kept_name_problems(context.job)
    problems += find_output_problems(context.job.output.path)
    problems += get_engine_type(context.job).find_problems(context.pinned_job)
    if context.schema and not schema_problems:
        problems += find_coordinate_problems(context, family, context.schema.json_schema)
        if answer.is_written and answer.guided and family.knows_model:
            problems += find_budget_problems(context, context.schema.text)
    return problems


def find_kept_name_problems(job: Job) -> list[str]:
    """Many readers of Parquet do not tell upper from lower case in the names of columns."""
    kept = [name.lower() for name in job.input.keep]
    reserved = list_reserved_columns(job)
    problems = [f"input.keep: names {name} twice" for name in dict.fromkeys(kept) if kept.count(name) > 1]
    for name in job.input.keep:
        if name.lower() in reserved:
            is_id = name == job.input.id and name.lower() == "id"
            advice = " or leave it out, for the output's is the same as text" if is_id else ""
            problem = f"every output has a column {name.lower()} of its own; give the manifest's another name{advice}"
            problems.append(f"input.keep: {problem}")
    return problems


def find_output_problems(path: str) -> list[str]:
    if RAY_PACKAGE_FOLDER in path:
        return [
            f"output.path: {path} is in the working directory of this Ray job, which Ray deletes; name "
            "object storage (s3://...) or a path from the root of a disk that every node has, with "
            "--set output.path=... or the variable that the job names: --runtime-env-json "
            '\'{"env_vars": {"OUTPUT": "s3://..."}}\''
        ]
    scheme = path.partition("://")[0] if "://" in path else "file"
    if scheme in CREATE_ONLY_SCHEMES:
        return []
    advice = "use a local folder, s3://, gs:// or az://"
    return [f"output.path: {scheme}:// cannot refuse to replace an object, which keeps two runs apart; {advice}"]


def find_pixel_problems(media: MediaSection, family: Family) -> Iterator[str]:
    side = family.patch_size * family.merge_size
    for key, section in (("media", media), ("media.video", media.video)):
        limits = {"max_pixels": section.max_pixels, "total_pixels": getattr(section, "total_pixels", None)}
        for name, pixels in limits.items():
            if pixels is not None and pixels < side**2:
                yield f"{key}.{name}: {pixels:,} is less than one token of this model, {side}*{side} pixels"
        if section.min_pixels and section.max_pixels and section.min_pixels > section.max_pixels:
            yield f"{key}.min_pixels: {section.min_pixels:,} is above max_pixels, {section.max_pixels:,}"


def find_budget_problems(context: RunContext, schema_text: str) -> list[str]:
    try:
        if count_min_bytes(schema_text) <= context.job.answer.max_new_tokens:
            return []  # a token has a byte or more
        min_tokens = count_min_tokens(schema_text, family_loader.load_tokenizer(locate_small_files(context)))
    except GenerateError as error:
        return [f"answer.schema: {error.message}"]
    if context.job.answer.max_new_tokens >= min_tokens:
        return []
    return [f"answer.max_new_tokens: the shortest answer that fits the schema has {min_tokens} tokens"]


def has_places(schema: SchemaNode) -> bool:
    return not {"box", "point"}.isdisjoint(find_field_meanings(schema).values())


def find_coordinate_problems(context: RunContext, family: Family, schema: SchemaNode) -> list[str]:
    """Places in answers need a coordinate system, and fractions need a schema that takes them."""
    if not has_places(schema):
        return []
    coordinates = get_engine_type(context.job).get_coordinate_system(context.job, family)
    if coordinates is None:
        return [
            f"model.coordinates: model.family {context.job.model.family} does not tell how this model writes boxes and "
            f"points; say {', '.join(get_args(CoordinateSystem))}, and say the same in prompt.user if there is one"
        ]
    if coordinates == "fraction" and (names := find_whole_number_places(schema)):
        return [f"model.coordinates: fraction does not fit the schema, which has whole numbers in {', '.join(names)}"]
    return []


def find_warnings(context: RunContext) -> list[str]:
    """Risks of a job that can run all the same."""
    meanings = find_field_meanings(context.schema.json_schema).values() if context.schema else ()
    yarn_risk = family_loader.describe_yarn_risk(context.job.model, meanings)
    unknown = None if open_family(context).knows_model else UNKNOWN_MODEL
    return [
        *filter(None, [yarn_risk, unknown, describe_settings(context.job)]),
        *get_engine_type(context.job).find_warnings(context.job),
    ]


def open_output_store(context: RunContext, *, allow_other_questions: bool) -> OutputStore:
    """Raise an OutputError if the output only holds answers to other questions and these are not allowed."""
    store = OutputStore(context.job.output.path, max_attempts=FIRST_CONTACT_ATTEMPTS)
    questions = list_questions(store)
    if questions and context.fingerprint not in questions and not allow_other_questions:
        previous_inputs = Dataset(store, max(questions)).read_question()
        changes = "\n".join(f"  {line}" for line in list_differences(previous_inputs, context.fingerprint_inputs))
        raise OutputError(
            f"{store.path} holds answers to another question:\n{changes}\n"
            "Choose another output.path, or add these answers to the same output with --on-change add."
        )
    Dataset(store, context.fingerprint).check_store()
    return OutputStore(store.path)


def list_differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from list_differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif before != now:
        yield f"{path}: was {format_value(before)}, is {format_value(now)}"


def format_value(value: Any) -> str:
    text = "the default" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
