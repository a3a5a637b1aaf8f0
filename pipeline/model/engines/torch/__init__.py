"""Requests -> replies on torch: a batch engine for the Qwen-VL models, on one device or divided among several.

    submit -> waiting -> admitted (a slot, a run of the cache) -> looked at -> read -> decoding -> reply

One `step` lets rows in, encodes one call's worth of pictures, and makes one pass over the tokens of
all rows: a slot that comes free is filled again at once, so short answers never wait for long ones.
Greedy answers are those of `generate` on each row alone. Nothing here knows Ray.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ItemError, JobError
from pipeline.job.spec import Job, TorchEngine
from pipeline.model import weights
from pipeline.model.engines.torch.forward import Work
from pipeline.model.engines.torch.model_runner import Task, lead
from pipeline.model.engines.torch.oom_backoff import attempt
from pipeline.model.engines.torch.pending_step import Flight, bring
from pipeline.model.engines.torch.request_checks import Intake
from pipeline.model.engines.torch.sampler import choose, constrain
from pipeline.model.engines.torch.scheduler import Holes, Need, admit, chunks, give
from pipeline.model.engines.torch.sequence import Row, Vocabulary
from pipeline.model.engines.torch.vision import Sight, Slice
from pipeline.model.families.base import Family
from pipeline.types import Failure, Reply, Request
from pipeline.watchdog import Watchdog

PATIENCE = 64  # rows that may overtake one whose run does not fit yet
AHEAD_BYTES = 512 * 2**20  # of pixels that may wait
COUNTS = ("rows", "steps", "prompt_tokens", "output_tokens", "tokens_computed", "slot_steps", "busy_steps")


class Torch:
    """`pipeline.model.engine_thread.run(Torch(folder, family), requests)` answers from a notebook."""

    def __init__(
        self,
        folder: Path,
        family: Family,
        *,
        dtype: str = "auto",
        attention: str = "auto",
        device: str | None = None,
        config: Mapping[str, Any] | None = None,
        quantize: str | None = None,
        tensor_parallel: int = 1,
        compiled: bool = False,
        hang_s: float = 600.0,
        **sizes: int | None,
    ):
        """`sizes` are slots, kv_tokens, patches and prefill_tokens; what is not given is chosen by memory.

        `compiled` compiles the decoding pass before it is captured: faster on CUDA, minutes at the first step.
        """
        if attention not in ("auto", "sdpa"):
            raise JobError(f"model.attention: engine torch has its own, for `auto`, and `sdpa`; {attention} it has not")
        task = Task(
            folder=folder,
            sight=Sight.of(family),
            context=family.context,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=dtype,
            attention=attention,
            config=config,
            quantize=quantize,
            compiled=compiled,
            hang_s=hang_s,
            threads=torch.get_num_threads(),
            sizes=sizes,
            size=tensor_parallel,
        )
        loaded, self.size, self.gallery, self.forward = lead(task)
        self.limits = self.size.limits()
        self.vocabulary = Vocabulary.of(family.tokenizer, loaded.stop, thinking=family.thinking)
        self.intake = Intake(family, self.gallery, self.vocabulary, self.size, loaded.vocabulary)
        self.holes: Holes = ((0, self.size.kv_tokens),)
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []  # admitted, in order
        self.answers: list[Reply | Failure] = []
        self.flight: Flight | None = None
        self.ahead = self.forward.graphs is not None and tensor_parallel == 1  # elsewhere nothing is computed meanwhile
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.watchdog = Watchdog(hang_s)

    @classmethod
    def open(cls, job: Job) -> Torch:
        assert isinstance(job.engine, TorchEngine)
        pool = job.workers.generate
        if pool.gpus and (there := torch.cuda.device_count()) < job.model.tensor_parallel:
            raise JobError(
                f"workers.generate.gpus: torch sees {there} GPUs here and a replica takes {job.model.tensor_parallel}; "
                "--set workers.generate.gpus=0 runs on CPU"
            )
        if not pool.gpus:  # Ray sets OMP_NUM_THREADS, not always to what the pool may use
            torch.set_num_threads(max(1, min(int(pool.cpus), os.cpu_count() or 1) // job.model.tensor_parallel))
        folder = weights.locate(job.model.weights, job.model.revision)
        return cls(
            folder,
            weights.family(folder, model=job.model, add_vision_id=job.media.add_vision_id),
            dtype=job.model.dtype,
            attention=job.model.attention,
            device="cuda" if pool.gpus else "cpu",
            config=weights.config(folder, job.model),
            quantize=job.model.quantize,
            tensor_parallel=job.model.tensor_parallel,
            **job.engine.model_dump(exclude={"kind"}),
        )

    def room(self) -> bool:
        ahead = sum(clip.pixels.nbytes for row in self.waiting for clip in row.request.clips)
        return not self.waiting or (len(self.waiting) < 2 * self.size.slots and ahead < AHEAD_BYTES)

    def submit(self, request: Request) -> None:
        try:
            self.waiting.append(self.intake.row(request))
        except ItemError as error:
            self.answers.append(error.failure(request.id))

    def step(self) -> list[Reply | Failure]:
        if self.waiting or self.rows:
            with self.watchdog:
                self.admit()
                self.look()
                self.compute()
        answers, self.answers = self.answers, []
        return answers

    def admit(self) -> None:
        """A few slots at a time: a pass over one short prompt costs almost what one over four does."""
        free = self.size.slots - len(self.rows)
        if not self.waiting or (self.rows and free < max(1, self.size.slots // 16)):
            return
        needs = [Need(row.need, row.overtaken) for row in self.waiting]
        chosen, self.holes = admit(needs, self.holes, slots=free, patience=PATIENCE)
        for index, row in enumerate(self.waiting):
            if index in chosen:
                row.start = chosen[index]
                self.rows.append(row)
            else:
                row.overtaken += sum(index < other for other in chosen)
        self.waiting = deque(row for index, row in enumerate(self.waiting) if index not in chosen)

    def look(self) -> None:
        """One call of the vision tower where a row needs it, filled up with what waiting rows will need."""
        blind = [row for row in self.rows if not self.gallery.ready(row.clips)]
        if blind:
            keys = chain.from_iterable(row.clips for row in chain(blind, self.waiting))
            attempt(self.gallery.next(keys, self.limits.patches), self.gallery.encode, self.fail_clip, self.limits)

    def compute(self) -> None:
        flight, self.flight, most = self.flight, None, self.limits.rows
        work = flight.landed() if flight else []
        if not work or len(work) > most:
            flight, work = None, self.work({})
        for group in (work[first : first + most] for first in range(0, len(work), most)):
            attempt(
                group,
                lambda some: self.advance(some, flight, ahead=self.ahead and len(some) == len(work)),
                lambda item, error: self.fail(item[0], error),
                self.limits,
            )
        self.counts["steps"] += 1
        if self.waiting:  # the tail, when there is nothing left to fill a slot with, is not counted
            self.counts["slot_steps"] += self.size.slots
            self.counts["busy_steps"] += len(self.rows)
        self.retire()

    def work(self, fed: Mapping[Row, int]) -> list[tuple[Row, int]]:
        """What there is to compute, within the limits, when those in `fed` have one token more."""
        ready = [row for row in self.rows if self.gallery.ready(row.clips) and row.failure is None]
        counts = chunks([1 if row in fed else row.todo for row in ready], self.limits.prefill_tokens)
        return [(row, count) for row, count in zip(ready, counts, strict=True) if count]

    def launch(self, work: Work, fed: Mapping[Row, int], tokens: Tensor | None = None) -> Flight:
        """`fed`: rows whose token only the device knows, and which of `tokens` it is."""
        logits = self.forward(work, fed, tokens)
        self.counts["tokens_computed"] += sum(count for _, count in work)
        return Flight(work, logits, [row for row, count in work if row in fed or count == row.todo])

    def advance(self, work: Work, flight: Flight | None, *, ahead: bool) -> None:
        """`flight` has computed it already."""
        chosen = [row for row, count in work if count == row.todo]
        logits = (flight or self.launch(work, {})).of(chosen)
        for index, error in constrain(logits, [row.matcher for row in chosen]).items():
            self.fail(chosen[index], error)
        picked, likely = choose(logits, [row.request.sampling for row in chosen], [row.random for row in chosen])
        said = bring(picked, likely)
        for row, count in work:  # from here on nothing fails
            row.done += count
            if row.clips and row.done >= row.prompt:
                self.forget(row)
        if ahead:
            self.go_on(chosen, picked)
        for row, token, logprob in zip(chosen, *said(), strict=True):
            if row.failure:
                continue
            try:
                row.choose(token, logprob, self.vocabulary)
            except ItemError as error:
                self.fail(row, error)

    def go_on(self, chosen: Sequence[Row], picked: Tensor) -> None:
        """The next pass, with tokens that the host has not read."""
        fed = {row: line for line, row in enumerate(chosen) if row.known + 1 < row.need and not row.failure}
        work = self.work(fed)
        if not work or len(work) > self.limits.rows:
            return
        try:
            self.flight = self.launch(work, fed, picked)
        except torch.AcceleratorError:
            raise
        except (RuntimeError, ValueError, IndexError):
            self.flight = None  # tried again, and answered for, when it is known what was said

    def fail(self, row: Row, error: ItemError) -> None:
        row.failure = error.failure(row.request.id)

    def fail_clip(self, piece: Slice, error: ItemError) -> None:
        for row in chain(self.rows, self.waiting):
            if piece.key in row.clips:
                self.fail(row, error)

    def retire(self) -> None:
        """Answers out, runs and pictures given back."""
        for row in [row for row in chain(self.rows, self.waiting) if row.failure or row.finish]:
            if row.start >= 0:
                self.holes = give(self.holes, row.start, row.need)
                self.rows.remove(row)
            else:
                self.waiting.remove(row)
            self.forget(row)
            self.counts["rows"] += 1
            self.counts["prompt_tokens"] += row.prompt
            self.counts["output_tokens"] += row.new
            self.answers.append(row.failure or row.reply(self.vocabulary))

    def forget(self, row: Row) -> None:
        for key in row.clips:
            self.gallery.leave(key)
        row.clips = ()

    def metrics(self) -> Mapping[str, float]:
        used = sum(row.done for row in self.rows)
        now = {"waiting": len(self.waiting), "busy": len(self.rows), "slots": self.size.slots, "kv_used": used}
        return {**self.counts, **now, "kv_tokens": self.size.kv_tokens, "patches": self.gallery.patches}

    def close(self) -> None:
        self.watchdog.close()
        self.gallery.ranks.close()
        self.waiting.clear()
        self.rows.clear()
