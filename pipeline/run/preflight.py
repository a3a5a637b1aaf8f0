"""A job, its manifest -> the Work that every worker is told, or what is wrong with it.

Nothing is started for this. Paths are settled once, so that they mean the same in every process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.context import Work, base_folder, model_name, open_family
from pipeline.errors import OutputError
from pipeline.job.fingerprint import fingerprint, question
from pipeline.job.spec import Job
from pipeline.manifest.chunks import columns_of, kept
from pipeline.manifest.files import File, schema_of
from pipeline.model import weights
from pipeline.model.guidance.grammar import minimum
from pipeline.output.answer.geometry import meanings
from pipeline.output.arrow_tables import OURS
from pipeline.output.store import Store, reach
from pipeline.registry import ENGINES, find
from pipeline.schema import load_schema as schemas


def work(job: Job, found: Sequence[File]) -> Work:
    """What the driver settles once, and every worker is told."""
    job = settled(job, found)
    schema = schemas.load(job.answer.schema_, base=base_folder())
    first = schema_of(found[0])
    user = schemas.prompt(schema) if schema and job.prompt.user is None else None
    columns_of(job, found[0], first, user)  # says which column is not there
    said = question(
        job,
        weights=weights.identity(job.model.weights, job.model.revision),
        schema=f"{user or ''}\n{schema.text}" if schema else None,
    )
    now = datetime.now(UTC)
    return Work(
        job=job,
        schema=schema,
        user=user,
        kept=kept(first, job),
        said=said,
        fingerprint=fingerprint(said),
        model=model_name(job),
        run=f"{now:%Y%m%dT%H%M%S}-{now.microsecond:05x}",  # in order, also within a second
    )


def settled(job: Job, found: Sequence[File]) -> Job:
    """The job with paths that mean the same in every process, and roots that follow from a local manifest."""
    roots = job.input.roots or tuple(
        dict.fromkeys(file.base.removeprefix("file://") for file in found if file.url.startswith("file://"))
    )
    weights_path = Path(job.model.weights)
    model = {"weights": str(weights_path.absolute())} if weights_path.is_dir() else {}
    filesystem, path = reach(job.output.path)
    return job.model_copy(
        update={
            "input": job.input.model_copy(update={"roots": tuple(str(local(root)) for root in roots)}),
            "model": job.model.model_copy(update=model),
            "output": job.output.model_copy(update={"path": filesystem.unstrip_protocol(path).removeprefix("file://")}),
        }
    )


def local(path: str) -> Path:
    return (base_folder() / Path(path.removeprefix("file://")).expanduser()).absolute()


def problems(work: Work, found: Sequence[File]) -> list[str]:
    """What would go wrong with every row, found without starting anything."""
    for file in found:
        columns_of(work.job, file, schema_of(file), work.user)
    if work.job.model.tensor_parallel > 1 and work.job.engine.kind == "torch":
        divide(work.job)
    open_family(work)  # says what is wrong with the checkpoint's small files
    out = schemas.problems(work.schema) if work.schema else []
    out += [
        f"input.keep: every output has a column {name} of its own; give the manifest's another name"
        + (" or leave it out, for the output's is the same as text" if name == work.job.input.id == "id" else "")
        for name in work.job.input.keep
        if name in OURS
    ]
    if work.job.engine.kind != "torch":  # which has nothing to add, and takes seconds to import
        engine = find(ENGINES, work.job.engine.kind, "engine.kind")
        out += getattr(engine, "problems", lambda job: [])(work.job)
    if work.schema and work.job.answer.guided:
        tokenizer = weights.tokenizer(weights.locate_small(work.job.model.weights, work.job.model.revision))
        least = minimum(work.schema.text, tokenizer)
        if work.job.answer.max_new_tokens < least:
            out.append(f"answer.max_new_tokens: the shortest answer that fits the schema has {least} tokens")
    return out


def divide(job: Job) -> None:
    """A JobError where the model cannot be divided so."""
    from pipeline.model.engines.torch.model_loader import understand  # torch takes seconds to import

    said = weights.config(weights.locate_small(job.model.weights, job.model.revision), job.model)
    understand(said, size=job.model.tensor_parallel, quantize=job.model.quantize)


def caution(work: Work) -> str | None:
    """What the models' authors warn of in a job that can run all the same."""
    means = meanings(work.schema.json_schema).values() if work.schema else ()
    said = [weights.caution(work.job.model, means)]
    if work.job.model.weights.startswith("builtin:") and work.job.engine.kind == "torch":
        said.append(f"{work.job.model.weights} knows drawn scenes only; for pictures of your own name a real model")
    elif work.job.engine.kind == "torch" and not work.job.workers.generate.gpus:
        said.append("workers.generate.gpus is 0, so the model runs on CPU")
    return "\ncareful: ".join(filter(None, said)) or None


def open_output(work: Work, *, add: bool) -> Store:
    """The output, after making sure that it holds answers to this question, or that others are welcome in it."""
    store = Store(work.job.output.path)
    mine, others = f"{work.fingerprint}.json", store.names("questions")
    if others and mine not in others and not add:
        before = json.loads(store.read(f"questions/{max(others)}"))
        changes = "\n".join(f"  {line}" for line in differences(before, work.said))
        raise OutputError(
            f"{store.path} holds answers to another question:\n{changes}\n"
            "Write elsewhere (output.path), or add these answers beside the others with --on-change add."
        )
    store.create(f"questions/{mine}", json.dumps(work.said, indent=2, default=str).encode())
    return store


def differences(before: Any, now: Any, at: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{at}.{key}".lstrip("."))
    elif before != now:
        yield f"{at}: was {short(before)}, is {short(now)}"


def short(value: Any) -> str:
    text = "the default" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
