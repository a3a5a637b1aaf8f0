"""Reads the examples of a job once, on the driver. Workers get them with the RunContext, media included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from pipeline.context import RunContext
from pipeline.errors import AnswerError, JobError, PromptError
from pipeline.fetch.storage_clients import get_client_options
from pipeline.job.spec import Job
from pipeline.manifest.column_selection import find_placeholders
from pipeline.manifest.items import fill_placeholders
from pipeline.output.store import open_filesystem
from pipeline.schema.validate import check_answer
from pipeline.types import MediaRef, Turn

MAX_MEDIA_BYTES = 64 * 2**20  # of all examples together: every worker gets them


def load_examples(job: Job, schema_prompt: str | None) -> tuple[Turn, ...]:
    """A question and an answer for each example, with the bytes of its media."""
    turns: list[Turn] = []
    for number, example in enumerate(job.prompt.examples):
        user = example.user or get_row_question(job, schema_prompt, f"prompt.examples.{number}.user")
        media = [MediaRef(read_media(url, f"prompt.examples.{number}.media")) for url in example.media]
        turns += [Turn("user", (*media, user)), Turn("assistant", (example.answer,))]
    size = sum(map(len, list_media(turns)))
    if size > MAX_MEDIA_BYTES:
        limit = MAX_MEDIA_BYTES / 2**20
        problem = f"the media have {size / 2**20:.0f} MiB; {limit:.0f} MiB may go to every worker"
        raise JobError(f"prompt.examples: {problem}")
    return tuple(turns)


def list_media(turns: Sequence[Turn]) -> list[bytes]:
    sources = [part.source for turn in turns for part in turn.parts if isinstance(part, MediaRef)]
    return [source for source in sources if isinstance(source, bytes)]


def get_row_question(job: Job, schema_prompt: str | None, key: str) -> str:
    template = job.prompt.user
    question = schema_prompt if template is None else fill_placeholders(template, {})
    if not question or find_placeholders(template):
        raise JobError(f"{key}: the question of the rows depends on the row; say what this example asks")
    return question


def read_media(url: str, key: str) -> bytes:
    filesystem, path = open_filesystem(url, **get_client_options(url.partition("://")[0] if "://" in url else ""))
    try:
        return bytes(filesystem.cat_file(path))
    except OSError as error:
        raise JobError(f"{key}: {url} cannot be read: {error.strerror or error}") from error


def describe_examples(job: Job, examples: Sequence[Turn]) -> list[dict[str, Any]]:
    """What the fingerprint hashes: the content of media, not their names."""
    return [
        {
            "media": [hashlib.sha256(source).hexdigest() for source in list_media([question])],
            "user": question.parts[-1],
            "answer": example.answer,
        }
        for question, example in zip(examples[::2], job.prompt.examples, strict=True)
    ]


def find_example_problems(context: RunContext) -> Iterator[str]:
    """Examples that no row can have before it."""
    job = context.job
    if not context.examples:
        return
    from pipeline.fetch.header_fetcher import open_header_fetcher  # all these take seconds to import
    from pipeline.media.decode import build_decode_limits
    from pipeline.media.header_decoder import HeaderDecoder
    from pipeline.prepare import Preparer, insert_examples

    if not job.answer.is_written:
        yield "prompt.examples: they show how answers are written, and this job's are not"
    if job.media.add_vision_id:
        yield "prompt.examples: media.add_vision_id would number the media of the examples, too; leave one of them out"
    yield from find_answer_problems(context)
    decoder = HeaderDecoder(build_decode_limits(job))
    with closing(Preparer(context, fetcher=open_header_fetcher(job), decoder=decoder)) as preparer:
        family = preparer.family
        turns = insert_examples((Turn("user", ("?",)),), preparer.load_examples())
        try:
            family.check_length(family.encode_turns(turns), job.answer.max_new_tokens)
        except PromptError as error:
            yield f"prompt.examples: with them alone, {error.message}"


def find_answer_problems(context: RunContext) -> Iterator[str]:
    """A model that sees an answer of another form cannot write one that fits."""
    schema = context.schema
    if schema is None:
        return
    for number, example in enumerate(context.job.prompt.examples):
        try:
            check_answer(json.loads(example.answer), schema)
        except AnswerError as error:
            yield f"prompt.examples.{number}.answer does not fit answer.schema: {error.message}"
        except ValueError:
            yield f"prompt.examples.{number}.answer is not JSON, which answer.schema asks for"
