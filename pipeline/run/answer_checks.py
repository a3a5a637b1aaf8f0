"""Checks whether the engine and the model can answer as the job wants: by choices, or with vectors."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import JobError
from pipeline.job.embedding_section import EmbeddingSection
from pipeline.job.spec import Job
from pipeline.model import family_loader
from pipeline.model.engines.base import Ability, get_engine_type
from pipeline.registry import ENGINES, import_object


def find_vector_width(job: Job, embedding: EmbeddingSection) -> int:
    """Of the column `embedding`."""
    width = family_loader.open_job_family(job).vector_widths.get(embedding.source)
    if width is None and embedding.dim is None:
        raise JobError("answer.embedding.dim: nothing here tells how long the vectors of this model are; say it")
    if width is not None and embedding.dim is not None and embedding.dim > width:
        raise JobError(
            f"answer.embedding.dim: {embedding.dim} is more than the {width} numbers of this model's vectors"
        )
    return embedding.dim or width or 0


def find_ability_problems(job: Job) -> list[str]:
    """Ways of answering that the engine does not have."""
    answer = job.answer
    if answer.embedding is not None:
        return [
            *list_missing_abilities(
                job, "embeddings" if answer.embedding.source == "language" else "vision_embeddings", "answer.embedding"
            ),
            *find_embedding_problems(job, answer.embedding),
        ]
    if answer.rerank is not None:
        problems = list_missing_abilities(job, "choices", "answer.rerank")
        if job.prompt.system is not None:
            problems.append("prompt.system: answer.rerank has a system message of its own; leave it out")
        return problems
    if answer.choices is None:
        return []
    problems = list_missing_abilities(job, "choices", "answer.choices")
    if job.prompt.user is not None and not answer.multi and any(answer.choices.values()):
        problems.append(
            "answer.choices: the descriptions are part of the default prompt, and prompt.user takes its place: write "
            "them there and leave a list here, or leave prompt.user out"
        )
    return problems


def list_missing_abilities(job: Job, ability: Ability, key: str) -> list[str]:
    if ability in get_engine_type(job).abilities:
        return []
    able = [kind for kind, where in ENGINES.items() if ability in import_object(where).abilities]
    reason = get_engine_type(job).missing_reasons.get(ability)
    because = f" ({reason})" if reason else ""
    return [f"{key}: engine {job.engine.kind} cannot do this{because}; it can be done by {', '.join(able)}"]


def find_embedding_problems(job: Job, embedding: EmbeddingSection) -> Iterator[str]:
    if embedding.source == "vision":
        for key, text in {"prompt.user": job.prompt.user, "prompt.system": job.prompt.system}.items():
            if text is not None:
                yield f"answer.embedding: `from: vision` reads no text; leave {key} out, or say from: language"
    elif embedding.instruction is not None and job.prompt.system is not None:
        yield "answer.embedding.instruction: it is the system message, and so is prompt.system; leave one of them out"
