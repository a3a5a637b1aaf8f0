"""A job -> what it will cost and what will fail, before anything is started or paid for.

    what is left to do -> a survey of headers -> tokens -> memory, hours and money on GPUs people rent -> advice

Tokens and failures are exact for the rows that were looked at; hours and money are estimates and say so.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from pipeline.context import Work, open_family
from pipeline.errors import JobError
from pipeline.inspect.plan.gpus import GPUS, Load, Offer, offer
from pipeline.inspect.plan.survey import Shown, Survey, sample, survey
from pipeline.job.spec import Job
from pipeline.manifest.files import files
from pipeline.media.sample import image_ask, video_ask
from pipeline.model import weights
from pipeline.model.engines.torch.model_size import Extent, extent
from pipeline.model.families.base import Family
from pipeline.output.store import Store
from pipeline.registry import nearest
from pipeline.run import preflight, resume
from pipeline.types import Ask, Size

SAMPLE_ROWS = 2000
ANSWER_TOKENS = 128  # of an answer, where nothing better is known
PARTS = 8  # of earlier answers, whose mean length is taken
BUDGETS = (2560, 1280, 640, 320, 160)  # tokens a picture, for advice
WORTH = 0.2  # of all vision tokens: what advice must save at least


@dataclass(frozen=True, slots=True)
class Advice:
    key: str
    value: int
    saves: float  # share of all vision tokens
    changes: float  # share of media that would be shown smaller


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    rows: int
    rows_left: int
    survey: Survey
    answer_tokens: float
    answers_known: int  # earlier answers that this is the mean of
    max_new_tokens: int
    load: Load
    model: Extent | None
    offers: tuple[Offer, ...]
    advice: tuple[Advice, ...]
    cost: float | None = None  # where tokens have a price

    @property
    def scale(self) -> float:
        """Rows that each surveyed row stands for."""
        return self.rows_left / self.survey.rows if self.survey.rows else 0.0


def plan(
    job: Job,
    *,
    rows: int | None = SAMPLE_ROWS,
    limit: int | None = None,
    answer_tokens: int | None = None,
    gpus: Sequence[str] = (),
    price: float | None = None,
) -> Plan:
    """`rows` is how many to look at; None looks at all."""
    if unknown := [name for name in gpus if name not in GPUS]:
        raise JobError(f"--gpu {unknown[0]}: known are {', '.join(GPUS)}{nearest(unknown[0], GPUS)}")
    found = files(job)
    work = preflight.work(job, found)
    if problems := preflight.problems(work, found):
        raise JobError("\n".join(problems))
    store = Store(work.job.output.path)
    todo = resume.plan(work, found, store, limit=limit)
    chunks = list(todo.left if rows is None else sample(todo.left, rows))
    console = Console(stderr=True)
    bar = track(chunks, "headers", console=console, transient=True, disable=not console.is_terminal)
    seen = survey(work, bar) if chunks else Survey()
    known, mean = answered_tokens(store, work)
    each = answer_tokens or (mean if known else min(ANSWER_TOKENS, job.answer.max_new_tokens))
    load = load_of(seen, todo.rows_left, each)
    model = extent_of(job)
    names = gpus or tuple(GPUS)
    many = max(1, math.ceil(job.workers.generate.gpus), job.model.tensor_parallel)
    return Plan(
        name=job.name,
        rows=todo.rows,
        rows_left=todo.rows_left,
        survey=seen,
        answer_tokens=each,
        answers_known=0 if answer_tokens else known,
        max_new_tokens=job.answer.max_new_tokens,
        load=load,
        model=model,
        offers=tuple(offer(name, load, model, gpus=many, price=price) for name in names) if model else (),
        advice=tuple(advice(seen, job, open_family(work))),
        cost=job.cost(load.prompt, load.output),
    )


def load_of(seen: Survey, rows: int, answer_tokens: float) -> Load:
    scale = rows / seen.rows if seen.rows else 0.0
    vision, text = (sum(tokens * count for tokens, count in each.items()) for each in (seen.vision, seen.text))
    good = seen.good * scale
    return Load(good, vision * scale, (vision + text) * scale, answer_tokens * good, seen.longest)


def extent_of(job: Job) -> Extent | None:
    """None where the model is not run here."""
    if job.engine.kind == "http":
        return None
    folder = weights.locate_small(job.model.weights, job.model.revision)
    return extent(weights.config(folder, job.model), dtype=job.model.dtype, quantize=job.model.quantize)


def answered_tokens(store: Store, work: Work) -> tuple[int, float]:
    """How many earlier answers to the same question were read, and their mean length."""
    folder = f"data/fp={work.fingerprint}"
    lengths: list[int] = []
    for name in sorted(store.names(folder))[:PARTS]:
        part = pq.read_table(io.BytesIO(store.read(f"{folder}/{name}")), columns=["tokens"])
        lengths += [row["output"] for row in part["tokens"].to_pylist()]
    return len(lengths), sum(lengths) / len(lengths) if lengths else 0.0


def advice(seen: Survey, job: Job, family: Family) -> list[Advice]:
    """Smaller pictures that save much: reckoned by the family on the sizes that were seen."""
    out = []
    whole = sum(count * tokens_of(shown, shown.size, family) for shown, count in seen.clips.items())
    for key, kind in (("media.max_pixels", "image"), ("media.video.max_pixels", "video")):
        clips = {shown: count for shown, count in seen.clips.items() if shown.kind == kind}
        now = sum(count * tokens_of(shown, shown.size, family) for shown, count in clips.items())
        for budget in BUDGETS:
            pixels = budget * (family.patch * family.merge) ** 2
            sizes = {shown: min(resized(shown, pixels, job, family), shown.size, key=math.prod) for shown in clips}
            then = sum(count * tokens_of(shown, sizes[shown], family) for shown, count in clips.items())
            changed = sum(count for shown, count in clips.items() if sizes[shown] != shown.size)
            if whole and (now - then) / whole >= WORTH:
                out.append(Advice(key, pixels, (now - then) / whole, changed / sum(clips.values())))
    return [
        each
        for at, each in enumerate(out)
        if at < 1 or each.key != out[at - 1].key or each.saves > 1.2 * out[at - 1].saves
    ]


def resized(shown: Shown, pixels: int, job: Job, family: Family) -> Size:
    if shown.kind == "image":
        return family.image_size(shown.source, replace(image_ask(job.media, Ask()), max_pixels=pixels, min_pixels=None))
    ask = replace(video_ask(job.media, Ask()), max_pixels=pixels, min_pixels=None)
    return family.video_size(shown.source, shown.frames, ask)


def tokens_of(shown: Shown, size: Size, family: Family) -> int:
    return family.vision_tokens(size, shown.frames)


def as_json(plan: Plan) -> dict[str, Any]:
    """All of it as plain values; `survey` is of the rows looked at, `load` of all that are left."""
    seen = {name: value for name, value in vars(plan.survey).items() if name not in ("vision", "text", "clips")}
    for name in ("vision", "text"):
        counts: Counter[int] = getattr(plan.survey, name)
        seen[f"{name}_tokens"] = sum(tokens * rows for tokens, rows in counts.items())
        seen[f"rows_by_{name}_tokens"] = dict(sorted(counts.items()))
    return {**asdict(replace(plan, survey=Survey())), "survey": seen}
