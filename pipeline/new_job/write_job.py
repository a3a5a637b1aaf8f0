"""Writes the first job file of a user: the command `init`.

The file is a job of the gallery in `jobs/`, comments included, with the manifest, model and fields of the user.
Nothing is overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.job.editor_schema import build_job_schema
from pipeline.job.job_loader import parse_job
from pipeline.job.spec import Job
from pipeline.manifest.files import MEDIA_KIND, list_manifest_files
from pipeline.new_job.gallery import JOB_SCHEMA_NAME, find_gallery_job
from pipeline.new_job.job_text import remove_section, set_keys
from pipeline.new_job.manifest_columns import choose_columns, describe_columns, read_sample
from pipeline.new_job.schema_text import build_schema_text, parse_fields
from pipeline.output.local_files import write_named_file

SCHEMA_MODEL = "Answer"


@dataclass(frozen=True, slots=True)
class NewJob:
    """What `init` asks or is told. Empty values leave what the gallery's job says."""

    path: Path
    task: str
    manifest: str
    model: str = ""
    gpus: int | None = None  # of one replica
    url: str = ""  # of a server that runs the model
    fields: str = ""  # of the answer, as parse_fields reads them
    prompt: str = ""
    media: str = ""  # columns; default: those that look like it
    id: str = ""


def write_job(wanted: NewJob, say: Callable[[str], None]) -> Job:
    """Write the job file, and a schema file for the user's own fields. Returns the job as a run reads it."""
    schema_path = wanted.path.with_name(f"{wanted.path.stem}_fields.py")
    if taken := [path for path in (wanted.path, schema_path) if path.exists()]:
        raise PipelineError(f"{taken[0]} exists, and init overwrites nothing; name another file with --to")
    text, keys = find_gallery_job(wanted.task).text, describe_job(wanted)
    files = {}
    if wanted.fields:
        files[schema_path] = build_schema_text(parse_fields(wanted.fields), SCHEMA_MODEL, wanted.prompt)
        keys["answer.schema"] = f"{schema_path}:{SCHEMA_MODEL}"
        text = replace_summary(text, "Reads the fields that the schema names.")
    if wanted.url:
        text = remove_section(remove_section(text, "workers"), "model")
    text = set_keys(text, keys)
    job = parse_job(text, source_name=str(wanted.path))  # a mistake is found before anything is written
    text = set_keys(text, choose_input_keys(wanted, job, say))
    files[wanted.path] = text
    files[wanted.path.with_name(JOB_SCHEMA_NAME)] = json.dumps(build_job_schema(), indent=1)  # its second line names it
    files = {path: content for path, content in files.items() if not path.exists()}
    for path, content in files.items():
        write_named_file(path, content.encode())
    say(f"wrote {', '.join(map(str, files))}")
    return parse_job(text, source_name=str(wanted.path))


def describe_job(wanted: NewJob) -> dict[str, Any]:
    """The keys that follow from what the user said."""
    name = wanted.path.stem
    keys: dict[str, Any] = {"name": name, "input.manifest": wanted.manifest}
    keys["output.path"] = f"${{OUTPUT:-out/{name}}}"
    if wanted.prompt and not wanted.fields:  # else it is in the schema
        keys["prompt.user"] = wanted.prompt
    if wanted.url:
        keys |= {"model": {"family": "generic", "coordinates": "thousandths"}}
        engine = {"kind": "http", "url": wanted.url, "model": wanted.model, "api_key": "${LLM_KEY:-}"}
        return keys | {"engine": {key: value for key, value in engine.items() if value}}
    if wanted.model:
        keys["model.weights"] = wanted.model
    if wanted.gpus is not None:
        keys["workers.generate.gpus"] = wanted.gpus
        keys |= {"model.tensor_parallel": wanted.gpus} if wanted.gpus > 1 else {}
    return keys


def choose_input_keys(wanted: NewJob, job: Job, say: Callable[[str], None]) -> dict[str, str]:
    """The columns of the media and of the ids, and a look at the manifest for the user."""
    file = list_manifest_files(job, say)[0]
    if file.kind == MEDIA_KIND:
        return {}
    sample = read_sample(file)
    guess = choose_columns(sample)
    choice = guess._replace(media=wanted.media or guess.media, id=wanted.id or guess.id)
    say(f"{file.url}:")
    for line in describe_columns(sample, choice):
        say(line)
    if choice.media is None and not guess.has_chat:
        raise PipelineError(f"no column of {file.url} looks like media; name the one that does with --media")
    return {f"input.{key}": name for key, name in (("media", choice.media), ("id", choice.id)) if name}


def replace_summary(text: str, summary: str) -> str:
    """Replace the second comment of a gallery's job, which says what it does."""
    lines = text.splitlines(keepends=True)
    position = [number for number, line in enumerate(lines) if line.startswith("# ")][1]
    return "".join([*lines[:position], f"# {summary}\n", *lines[position + 1 :]])
