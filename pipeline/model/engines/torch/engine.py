"""Our engine: continuous batching for vision-language models, on one device or on several by tensor parallelism.

    submit -> waiting -> admitted (a slot, a run of the KV cache) -> pictures encoded -> prefill -> decode -> reply

`TorchEngine.step` is the place to start reading. A step admits sequences, encodes pictures, and runs the language model
once over the scheduled tokens of all sequences, in prefill or in decode. A slot that becomes free is filled in the next
step, so short answers never wait for long ones.

In float32 greedy answers equal those of `generate` on each row alone, and a seed gives the same answer in any batch. In
bfloat16 both hold up to rounding: kernels for other batch sizes sum in another order, so that one of two almost equally
likely tokens may be chosen in place of the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import GenerateError, ItemError, JobError
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engines.torch.linear_state import list_kept_rows
from pipeline.model.engines.torch.oom_backoff import MODEL_ERRORS, LimitsFile, StepLimits, run_or_split
from pipeline.model.engines.torch.pending_step import PendingStep, UnreadTokens, start_copy, start_copy_to_host
from pipeline.model.engines.torch.replica import RankConfig, start_replica
from pipeline.model.engines.torch.sampler import apply_grammar_masks, sample_tokens
from pipeline.model.engines.torch.scheduler import ScheduledBatch, Scheduler, select_sampled
from pipeline.model.engines.torch.sequence import SequenceState, measure_load
from pipeline.model.engines.torch.sequence_builder import SequenceBuilder
from pipeline.model.engines.torch.vision_encoder import ClipSlice, VisionConfig
from pipeline.model.families.base import Family
from pipeline.types import Failure, Reply, Request
from pipeline.watchdog import Watchdog

NOT_NUMBERS = "the model's logits are not numbers: try another model.dtype"
JOINED_BRANCH_TOKENS = 256
MAX_WAITING_PIXEL_BYTES = 512 * 2**20
TOKEN_COUNTERS = ("prompt_tokens", "output_tokens", "tokens_computed", "tokens_copied")
COUNTER_NAMES = ("rows", "steps", *TOKEN_COUNTERS, "slot_steps", "busy_steps")


class TorchEngine:
    """In a notebook: `engine_thread.generate_replies(TorchEngine(folder, family), requests)`."""

    def __init__(self, folder: Path, family: Family, *, device: str | None = None, **options: Any):
        """`options` are fields of RankConfig: slots, dtype, tensor_parallel and so on."""
        rank_config = RankConfig(
            folder,
            VisionConfig.from_family(family),
            family.context_length,
            device or ("cuda" if torch.cuda.is_available() else "cpu"),
            threads=torch.get_num_threads(),
            **options,
        )
        if rank_config.attention not in ("auto", "sdpa"):
            raise JobError(f"model.attention: engine torch supports `auto` and `sdpa`, not {rank_config.attention}")
        loaded, self.sizes, self.vision_cache, self.step_runner = start_replica(rank_config)
        self.limits = StepLimits(self.sizes.prefill_tokens, self.sizes.patches, max_sequences=self.sizes.slots)
        self.limits_file = LimitsFile(rank_config)
        if worker_group := self.vision_cache.collectives.worker_group:
            self.limits_file.apply(self.limits)
            worker_group.on_out_of_memory = lambda: self.limits_file.save_halved(self.limits)
        self.detokenizer = Detokenizer.from_tokenizer(family.tokenizer, loaded.stop_tokens, thinking=family.thinking)
        self.sequence_builder = SequenceBuilder(
            family,
            self.vision_cache,
            self.detokenizer,
            self.sizes.kv_tokens,
            loaded.vocabulary_size,
            reuses_prefixes=rank_config.reuse_prefixes,
            joined_branch_tokens=0 if self.step_runner.has_flash or loaded.state_shape else JOINED_BRANCH_TOKENS,
        )
        state_rows = list_kept_rows(self.sizes.slots) if loaded.state_shape else None
        self.scheduler = Scheduler(self.sizes.slots, self.sizes.kv_tokens, state_rows)
        self.graphs = self.step_runner.graphs
        self.finished: list[Reply | Failure] = []
        self.pending_step: PendingStep | None = None
        self.can_launch_ahead = self.step_runner.has_flash  # a CPU computes nothing while the host works
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTER_NAMES, 0))
        self.waiting_load = measure_load([])
        self.watchdog = Watchdog(rank_config.hang_s)

    def has_room(self) -> bool:
        waiting_count, prefill_tokens = len(self.scheduler.waiting), self.waiting_load["prefill_tokens"]
        is_short = waiting_count < 2 * self.sizes.slots or 0 < prefill_tokens < 2 * self.limits.prefill_tokens
        return not waiting_count or (is_short and self.waiting_load["pixel_bytes"] < MAX_WAITING_PIXEL_BYTES)

    def submit(self, request: Request) -> None:
        try:
            sequence = self.sequence_builder.build_sequence(request)
            self.scheduler.submit(sequence)
            self.waiting_load += measure_load([sequence])
        except ItemError as error:
            self.finished.append(error.to_failure(request.id))

    def step(self) -> list[Reply | Failure]:
        if self.scheduler.waiting or self.scheduler.running:
            with self.watchdog:
                self.scheduler.admit_waiting()
                self.encode_vision()
                batch, launched = self.schedule_batch()
                self.compute_batch(batch, launched)
                self.count_step()
                self.retire_finished()
            self.waiting_load = measure_load(self.scheduler.waiting)
        finished, self.finished = self.finished, []
        return finished

    def encode_vision(self) -> None:
        """Call the vision tower once if a running sequence needs it, filled up with clips of waiting sequences.

        Prefill is slower, so features would pile up. While there is no room for a call's, no clip is encoded as long as
        some sequence has a prefill to compute, after which its features are dropped.
        """
        running, waiting = self.scheduler.running, self.scheduler.waiting
        blocked = [item for item in running if not self.has_features(item)]
        if not blocked:
            return
        sequences: Iterable[SequenceState] = chain(blocked, waiting)
        if not self.vision_cache.has_room(self.limits.patches):
            if any(self.is_ready(sequence) and not sequence.is_prefilled for sequence in running):
                return
            sequences = blocked[:1]
        keys = chain.from_iterable(map(self.scheduler.list_needed_clips, sequences))
        slices = self.vision_cache.select_slices(keys, self.limits.patches)
        run_or_split(slices, self.vision_cache.encode_slices, self.fail_clip, self.limits)

    def schedule_batch(self) -> tuple[ScheduledBatch, PendingStep | None]:
        """The batch of this step; and the pending step that computes it, if one was launched ahead."""
        launched, self.pending_step = self.pending_step, None
        batch = launched.select_unfinished() if launched else []
        if batch and len(batch) <= self.count_together(batch):
            return batch, launched
        return self.schedule(), None

    def count_together(self, batch: ScheduledBatch) -> int:
        """How many sequences go through one pass. Those that only prefill are limited by their tokens alone."""
        is_sampled = any(not sequence.only_prefills for sequence, _ in batch)
        return self.limits.max_sequences if is_sampled else max(1, len(batch))

    def schedule(self, sampled: Collection[SequenceState] = ()) -> ScheduledBatch:
        prefer_decode = self.graphs is not None and self.graphs.is_usable
        batch = self.scheduler.schedule(self.is_ready, self.limits.prefill_tokens, sampled, prefer_decode=prefer_decode)
        for sequence in self.scheduler.displaced:
            if not sequence.clips:  # they were released after its prompt was computed
                sequence.clips = self.sequence_builder.add_clips(sequence.request, sequence.vision_indices)
        return batch

    def is_ready(self, sequence: SequenceState) -> bool:
        if sequence.failure or sequence.awaited_tokens:
            return False
        return self.has_features(sequence)

    def has_features(self, sequence: SequenceState) -> bool:
        return not sequence.clips or self.vision_cache.is_encoded(sequence.list_needed_clips())

    def compute_batch(self, batch: ScheduledBatch, launched: PendingStep | None) -> None:
        """Advance all sequences together, or in parts where the limits or a failing sequence require it."""

        def advance(part: ScheduledBatch) -> None:
            self.advance_sequences(part, launched, launch_next=self.can_launch_ahead and len(part) == len(batch))

        def fail(item: tuple[SequenceState, int], error: ItemError) -> None:
            item[0].fail(error)

        max_sequences = self.count_together(batch)
        for first in range(0, len(batch), max_sequences):
            run_or_split(batch[first : first + max_sequences], advance, fail, self.limits)

    def advance_sequences(self, batch: ScheduledBatch, launched: PendingStep | None, *, launch_next: bool) -> None:
        """Run the model, sample, and update the sequences. All calls that may fail come before the first update."""
        sampled = select_sampled(batch)
        step = launched or self.launch_step(batch)
        logits = step.select_logits(sampled)
        scored, scores = step.select_scores(batch)
        pooled, sums = step.select_sums(batch)
        normalizers = logits.logsumexp(-1)
        for index, error in apply_grammar_masks(logits, [sequence.matcher for sequence in sampled]).items():
            sampled[index].fail(error)
        settings = [sequence.request.sampling for sequence in sampled]
        tokens = sample_tokens(logits, settings, [sequence.random_number for sequence in sampled])
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - normalizers
        read_tokens = start_copy_to_host(tokens, logprobs)
        read_scores = start_copy(scores) if scored else lambda: scores
        read_sums = start_copy(sums) if pooled else lambda: sums  # one of no rows
        self.mark_computed(batch)
        if launch_next:
            self.launch_next_step(sampled, tokens)
        score_parts = torch.split(read_scores(), [len(numbers) for _, numbers in scored])
        for (sequence, numbers), part in zip(scored, score_parts, strict=True):
            if not part.isfinite().all():
                sequence.fail(GenerateError("model", NOT_NUMBERS))
            sequence.add_target_logprobs(numbers, part.numpy())
        for sequence, total in zip(pooled, read_sums(), strict=True):
            sequence.add_states(total.numpy())
        for sequence, token, logprob in zip(sampled, *read_tokens(), strict=True):
            if not math.isfinite(logprob):
                sequence.fail(GenerateError("model", NOT_NUMBERS))
            if sequence.failure is None:
                try:
                    sequence.append_sampled_token(int(token), logprob, self.detokenizer)
                except ItemError as error:
                    sequence.fail(error)

    def launch_step(self, batch: ScheduledBatch, unread: UnreadTokens | None = None) -> PendingStep:
        outputs = self.step_runner(batch, unread)
        self.counters["tokens_computed"] += sum(count for _, count in batch)
        targets = [
            (sequence, columns.continuations)
            for sequence, count in batch
            if sequence.scorer and len((columns := sequence.list_targets(count)).continuations)
        ]
        pooled = [sequence for sequence, count in batch if sequence.find_pooled_span(count)]
        return PendingStep(batch, outputs.logits, select_sampled(batch), outputs.scores, targets, outputs.sums, pooled)

    def launch_next_step(self, sampled: Sequence[SequenceState], tokens: Tensor) -> None:
        """Launch the next step with tokens that the host has not read: see pending_step.py."""
        continuing = {
            sequence: index
            for index, sequence in enumerate(sampled)
            if sequence.failure is None and sequence.known_tokens + 1 < sequence.max_tokens
        }
        batch = self.schedule(continuing)
        if not batch or len(batch) > self.count_together(batch):
            return
        try:
            self.pending_step = self.launch_step(batch, UnreadTokens(tokens, continuing))
        except torch.AcceleratorError:
            raise
        except MODEL_ERRORS:
            self.pending_step = None

    def mark_computed(self, batch: ScheduledBatch) -> None:
        for sequence, count in batch:
            self.counters["tokens_copied"] += sequence.prefix_tokens if sequence.is_new else 0
            self.scheduler.mark_computed(sequence, count)
            if sequence.clips and sequence.computed_tokens >= sequence.prompt_tokens:
                self.release_clips(sequence)

    def fail_clip(self, clip_slice: ClipSlice, error: ItemError) -> None:
        for sequence in chain(self.scheduler.running, self.scheduler.waiting):
            if clip_slice.key in sequence.clip_keys:
                sequence.fail(error)

    def count_step(self) -> None:
        self.counters["steps"] += 1
        if self.scheduler.waiting:  # at the end of a run no sequence waits to fill a slot: that counts for nothing
            self.counters["slot_steps"] += self.sizes.slots
            self.counters["busy_steps"] += len(self.scheduler.running)

    def retire_finished(self) -> None:
        """Give back slots, cache and clips of the sequences that ended, and build their replies."""
        sequences = chain(self.scheduler.running, self.scheduler.waiting)
        for sequence in [sequence for sequence in sequences if sequence.failure or sequence.finish]:
            self.scheduler.remove(sequence)
            self.release_clips(sequence)
            self.counters["rows"] += 1
            self.counters["prompt_tokens"] += sequence.prompt_tokens
            self.counters["output_tokens"] += sequence.output_tokens
            self.finished.append(sequence.failure or sequence.build_reply(self.detokenizer))

    def release_clips(self, sequence: SequenceState) -> None:
        for key in sequence.clip_keys:
            self.vision_cache.release_clip(key)
        sequence.clips = ()

    def metrics(self) -> Mapping[str, float]:
        return {
            **self.counters,
            **self.scheduler.counters,
            "graph_steps": self.graphs.replay_count if self.graphs else 0,
            "waiting": len(self.scheduler.waiting),
            "busy": len(self.scheduler.running),
            "slots": self.sizes.slots,
            "kv_used": sum(sequence.computed_tokens for sequence in self.scheduler.running),
            "kv_tokens": self.sizes.kv_tokens,
            "patches": self.vision_cache.encoded_patches,
        }

    def close(self) -> None:
        self.watchdog.close()
        if self.graphs:
            self.graphs.release()
        self.vision_cache.collectives.close()
        self.limits_file.remove()
        self.scheduler.waiting.clear()
        self.scheduler.running.clear()
