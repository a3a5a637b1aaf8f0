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
from pipeline.job.spec import Job, TorchSettings
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.torch.forward import ScheduledBatch
from pipeline.model.engines.torch.model_runner import RankConfig, start_replica
from pipeline.model.engines.torch.oom_backoff import run_or_split
from pipeline.model.engines.torch.pending_step import PendingStep, start_copy_to_host
from pipeline.model.engines.torch.request_checks import SequenceBuilder
from pipeline.model.engines.torch.sampler import apply_grammar_masks, sample_tokens
from pipeline.model.engines.torch.scheduler import (
    CacheRequest,
    FreeRuns,
    choose_admissions,
    release_run,
    split_token_budget,
)
from pipeline.model.engines.torch.sequence import Detokenizer, SequenceState
from pipeline.model.engines.torch.vision import ClipSlice, VisionConfig
from pipeline.model.families.base import Family
from pipeline.types import Failure, Reply, Request
from pipeline.watchdog import Watchdog

MAX_OVERTAKES = 64  # rows that may overtake one whose run does not fit yet
MAX_WAITING_PIXEL_BYTES = 512 * 2**20  # of pixels that may wait
COUNTER_NAMES = ("rows", "steps", "prompt_tokens", "output_tokens", "tokens_computed", "slot_steps", "busy_steps")


class TorchEngine:
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
        task = RankConfig(
            folder=folder,
            vision_config=VisionConfig.from_family(family),
            context_length=family.context_length,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=dtype,
            attention=attention,
            model_config=config,
            quantize=quantize,
            compiled=compiled,
            hang_s=hang_s,
            threads=torch.get_num_threads(),
            requested_sizes=sizes,
            size=tensor_parallel,
        )
        loaded, self.sizes, self.vision_cache, self.step_runner = start_replica(task)
        self.limits = self.sizes.to_step_limits()
        self.detokenizer = Detokenizer.from_tokenizer(family.tokenizer, loaded.stop_tokens, thinking=family.thinking)
        self.sequence_builder = SequenceBuilder(
            family, self.vision_cache, self.detokenizer, self.sizes, loaded.vocabulary_size
        )
        self.free_runs: FreeRuns = ((0, self.sizes.kv_tokens),)
        self.waiting: deque[SequenceState] = deque()
        self.sequences: list[SequenceState] = []  # admitted, in order
        self.finished: list[Reply | Failure] = []
        self.pending_step: PendingStep | None = None
        self.can_launch_ahead = (
            self.step_runner.graphs is not None and tensor_parallel == 1
        )  # elsewhere nothing is computed meanwhile
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTER_NAMES, 0))
        self.watchdog = Watchdog(hang_s)

    @classmethod
    def open(cls, job: Job) -> TorchEngine:
        assert isinstance(job.engine, TorchSettings)
        pool = job.workers.generate
        if pool.gpus and (there := torch.cuda.device_count()) < job.model.tensor_parallel:
            raise JobError(
                f"workers.generate.gpus: torch sees {there} GPUs here and a replica takes {job.model.tensor_parallel}; "
                "--set workers.generate.gpus=0 runs on CPU"
            )
        if not pool.gpus:  # Ray sets OMP_NUM_THREADS, not always to what the pool may use
            torch.set_num_threads(max(1, min(int(pool.cpus), os.cpu_count() or 1) // job.model.tensor_parallel))
        folder = checkpoint_location.locate_checkpoint(job.model.weights, job.model.revision)
        return cls(
            folder,
            family_loader.load_family(folder, model=job.model, add_vision_id=job.media.add_vision_id),
            dtype=job.model.dtype,
            attention=job.model.attention,
            device="cuda" if pool.gpus else "cpu",
            config=family_loader.load_config(folder, job.model),
            quantize=job.model.quantize,
            tensor_parallel=job.model.tensor_parallel,
            **job.engine.model_dump(exclude={"kind"}),
        )

    def has_room(self) -> bool:
        ahead = sum(clip.pixels.nbytes for row in self.waiting for clip in row.request.clips)
        return not self.waiting or (len(self.waiting) < 2 * self.sizes.slots and ahead < MAX_WAITING_PIXEL_BYTES)

    def submit(self, request: Request) -> None:
        try:
            self.waiting.append(self.sequence_builder.build_sequence(request))
        except ItemError as error:
            self.finished.append(error.to_failure(request.id))

    def step(self) -> list[Reply | Failure]:
        if self.waiting or self.sequences:
            with self.watchdog:
                self.admit_waiting()
                self.encode_vision()
                self.compute_step()
        answers, self.finished = self.finished, []
        return answers

    def admit_waiting(self) -> None:
        """A few slots at a time: a pass over one short prompt costs almost what one over four does."""
        free = self.sizes.slots - len(self.sequences)
        if not self.waiting or (self.sequences and free < max(1, self.sizes.slots // 16)):
            return
        needs = [CacheRequest(row.max_tokens, row.overtaken_count) for row in self.waiting]
        chosen, self.free_runs = choose_admissions(needs, self.free_runs, slots=free, max_overtakes=MAX_OVERTAKES)
        for index, row in enumerate(self.waiting):
            if index in chosen:
                row.run_start = chosen[index]
                self.sequences.append(row)
            else:
                row.overtaken_count += sum(index < other for other in chosen)
        self.waiting = deque(row for index, row in enumerate(self.waiting) if index not in chosen)

    def encode_vision(self) -> None:
        """One call of the vision tower where a row needs it, filled up with what waiting rows will need."""
        blind = [row for row in self.sequences if not self.vision_cache.is_encoded(row.clip_keys)]
        if blind:
            keys = chain.from_iterable(row.clip_keys for row in chain(blind, self.waiting))
            run_or_split(
                self.vision_cache.select_slices(keys, self.limits.patches),
                self.vision_cache.encode_slices,
                self.fail_clip,
                self.limits,
            )

    def compute_step(self) -> None:
        flight, self.pending_step, most = self.pending_step, None, self.limits.max_sequences
        work = flight.select_unfinished() if flight else []
        if not work or len(work) > most:
            flight, work = None, self.plan_batch({})
        for group in (work[first : first + most] for first in range(0, len(work), most)):
            run_or_split(
                group,
                lambda some: self.advance_sequences(
                    some, flight, launch_next=self.can_launch_ahead and len(some) == len(work)
                ),
                lambda item, error: self.fail_sequence(item[0], error),
                self.limits,
            )
        self.counters["steps"] += 1
        if self.waiting:  # the tail, when there is nothing left to fill a slot with, is not counted
            self.counters["slot_steps"] += self.sizes.slots
            self.counters["busy_steps"] += len(self.sequences)
        self.retire_finished()

    def plan_batch(self, device_token_rows: Mapping[SequenceState, int]) -> list[tuple[SequenceState, int]]:
        """What there is to compute, within the limits, when those in `fed` have one token more."""
        ready = [row for row in self.sequences if self.vision_cache.is_encoded(row.clip_keys) and row.failure is None]
        counts = split_token_budget(
            [1 if row in device_token_rows else row.pending_tokens for row in ready], self.limits.prefill_tokens
        )
        return [(row, count) for row, count in zip(ready, counts, strict=True) if count]

    def launch_step(
        self, batch: ScheduledBatch, device_token_rows: Mapping[SequenceState, int], device_tokens: Tensor | None = None
    ) -> PendingStep:
        """`fed`: rows whose token only the device knows, and which of `tokens` it is."""
        logits = self.step_runner(batch, device_token_rows, device_tokens)
        self.counters["tokens_computed"] += sum(count for _, count in batch)
        return PendingStep(
            batch, logits, [row for row, count in batch if row in device_token_rows or count == row.pending_tokens]
        )

    def advance_sequences(self, batch: ScheduledBatch, pending_step: PendingStep | None, *, launch_next: bool) -> None:
        """`flight` has computed it already."""
        chosen = [row for row, count in batch if count == row.pending_tokens]
        logits = (pending_step or self.launch_step(batch, {})).select_logits(chosen)
        for index, error in apply_grammar_masks(logits, [row.matcher for row in chosen]).items():
            self.fail_sequence(chosen[index], error)
        picked, likely = sample_tokens(logits, [row.request.sampling for row in chosen], [row.random for row in chosen])
        said = start_copy_to_host(picked, likely)
        for row, count in batch:  # from here on nothing fails
            row.computed_tokens += count
            if row.clip_keys and row.computed_tokens >= row.prompt_tokens:
                self.release_clips(row)
        if launch_next:
            self.launch_next_step(chosen, picked)
        for row, token, logprob in zip(chosen, *said(), strict=True):
            if row.failure:
                continue
            try:
                row.append_chosen_token(token, logprob, self.detokenizer)
            except ItemError as error:
                self.fail_sequence(row, error)

    def launch_next_step(self, sampling_sequences: Sequence[SequenceState], sampled_tokens: Tensor) -> None:
        """The next pass, with tokens that the host has not read."""
        fed = {
            row: line
            for line, row in enumerate(sampling_sequences)
            if row.known_tokens + 1 < row.max_tokens and not row.failure
        }
        work = self.plan_batch(fed)
        if not work or len(work) > self.limits.max_sequences:
            return
        try:
            self.pending_step = self.launch_step(work, fed, sampled_tokens)
        except torch.AcceleratorError:
            raise
        except (RuntimeError, ValueError, IndexError):
            self.pending_step = None  # tried again, and answered for, when it is known what was said

    def fail_sequence(self, sequence: SequenceState, error: ItemError) -> None:
        sequence.failure = error.to_failure(sequence.request.id)

    def fail_clip(self, clip_slice: ClipSlice, error: ItemError) -> None:
        for row in chain(self.sequences, self.waiting):
            if clip_slice.key in row.clip_keys:
                self.fail_sequence(row, error)

    def retire_finished(self) -> None:
        """Answers out, runs and pictures given back."""
        for row in [row for row in chain(self.sequences, self.waiting) if row.failure or row.finish]:
            if row.run_start >= 0:
                self.free_runs = release_run(self.free_runs, row.run_start, row.max_tokens)
                self.sequences.remove(row)
            else:
                self.waiting.remove(row)
            self.release_clips(row)
            self.counters["rows"] += 1
            self.counters["prompt_tokens"] += row.prompt_tokens
            self.counters["output_tokens"] += row.output_tokens
            self.finished.append(row.failure or row.build_reply(self.detokenizer))

    def release_clips(self, sequence: SequenceState) -> None:
        for key in sequence.clip_keys:
            self.vision_cache.release_clip(key)
        sequence.clip_keys = ()

    def metrics(self) -> Mapping[str, float]:
        used = sum(row.computed_tokens for row in self.sequences)
        now = {"waiting": len(self.waiting), "busy": len(self.sequences), "slots": self.sizes.slots, "kv_used": used}
        return {**self.counters, **now, "kv_tokens": self.sizes.kv_tokens, "patches": self.vision_cache.encoded_patches}

    def close(self) -> None:
        self.watchdog.close()
        self.vision_cache.collectives.close()
        self.waiting.clear()
        self.sequences.clear()
