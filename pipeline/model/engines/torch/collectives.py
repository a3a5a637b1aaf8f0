"""Sums and gathers that make one model of the shares that several processes hold.

All ranks make the same collective calls in the same order. The calls are counted, so that after an error the ranks can
tell whether they failed at the same place. A single rank calls nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding

from pipeline.model.engines.torch import shard
from pipeline.model.engines.torch.oom_backoff import MODEL_ERRORS
from pipeline.model.engines.torch.shard import SINGLE_RANK, TensorParallel

if TYPE_CHECKING:
    from pipeline.model.engines.torch.model_loader import LoadedModel
    from pipeline.model.engines.torch.worker_group import WorkerGroup

HOST = "127.0.0.1"  # a replica stays on one machine
LEAVE_TIMEOUT_S = 10.0  # NCCL waits for ever for ranks that have ended
SUCCEEDED, FAILED, OUT_OF_MEMORY = 0, 1, 2
TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]
T = TypeVar("T")


class Collectives:
    def __init__(self, tp: TensorParallel = SINGLE_RANK, worker_group: WorkerGroup | None = None):
        self.tp = tp
        self.worker_group = worker_group  # the other ranks; only rank 0 has it
        self.call_count = 0

    def open_store(self, port: int = 0) -> Any:
        """The ranks meet on a port that the system chooses; rank 0 tells it to the others."""
        return TCPStore(HOST, port, self.tp.size, is_master=self.tp.rank == 0, wait_for_workers=False)

    def join_process_group(self, store: Any, *, device: torch.device, timeout_s: float) -> None:
        """Return when all ranks have joined."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=store,
            rank=self.tp.rank,
            world_size=self.tp.size,
            timeout=timedelta(seconds=1.5 * timeout_s),  # after the watchdog, which says where a step hangs
            device_id=device if is_cuda else None,
        )

    @contextmanager
    def run_on_all_ranks(self, command: str, *arguments: tuple[Any, ...]) -> Iterator[None]:
        """Send the command to the other ranks while rank 0 runs the block; all succeed or all fail.

        `arguments` is one tuple for all ranks, or one for each. For a single rank only the block runs.
        """
        if self.worker_group is None:
            yield
            return
        calls_before = self.call_count
        self.worker_group.send_command(command, *arguments)
        try:
            yield
        except MODEL_ERRORS as error:
            self.worker_group.confirm_shared_failure(self.call_count - calls_before, error)
            raise

    def all_reduce_sum(self, summand: Tensor) -> Tensor:
        """In place."""
        self.call_count += 1
        dist.all_reduce(summand)
        return summand

    def gather_columns(self, columns: Tensor) -> Tensor:
        """[rows, columns of this rank] -> [rows, columns of all ranks] on rank 0; the others keep their own."""
        if not len(columns):
            return columns.new_empty(0, columns.shape[1] * self.tp.size)
        self.call_count += 1
        columns = columns.contiguous()
        parts = [torch.empty_like(columns) for _ in range(self.tp.size)] if self.tp.rank == 0 else None
        dist.gather(columns, parts)
        return columns if parts is None else torch.cat(parts, 1)

    def broadcast(self, block: Tensor, owner: int) -> None:
        """Fill every rank's block with the owner's."""
        if self.tp.size == 1:
            return
        self.call_count += 1
        dist.broadcast(block, owner)

    def succeed_or_fail_together(self, run: Callable[[], T], device: torch.device) -> T:
        """Run work without collectives on every rank; where it fails on one, it fails on all."""
        if self.tp.size == 1:
            return run()
        failure, state = None, SUCCEEDED
        try:
            result = run()
        except MODEL_ERRORS as error:
            failure, state = error, OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else FAILED
        worst_state = torch.tensor(state, device=device)
        self.call_count += 1
        dist.all_reduce(worst_state, dist.ReduceOp.MAX)
        worst = worst_state.item()
        if worst == OUT_OF_MEMORY and state != OUT_OF_MEMORY:
            raise torch.OutOfMemoryError("out of memory on another rank") from failure
        if failure is not None:
            raise failure
        if worst != SUCCEEDED:
            raise RuntimeError("it failed on another rank")
        return result

    def close(self) -> None:
        if self.worker_group is not None:
            self.worker_group.send_end()
        if self.tp.size > 1 and dist.is_initialized():
            leaving = Thread(target=dist.destroy_process_group, name="leave process group", daemon=True)
            leaving.start()
            leaving.join(LEAVE_TIMEOUT_S)
        if self.worker_group is not None:
            self.worker_group.close()


def connect_shards(loaded: LoadedModel, collectives: Collectives) -> None:
    """Hook collectives into the model, at every place where the ranks' shares meet."""
    if collectives.tp.size == 1:
        return
    config, embed_tokens = loaded.language_model.config, loaded.language_model.embed_tokens
    first_token, _ = shard.compute_span(config.vocab_size, collectives.tp)
    embed_tokens.forward = shard_embedding(embed_tokens, first_token, collectives)
    loaded.lm_head.register_forward_hook(lambda module, inputs, output: collectives.gather_columns(output))

    def sum_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return collectives.all_reduce_sum(output)

    for name, module in loaded.language_model.layers.named_modules():
        rule = loaded.architecture.shard_rules.get(name.rpartition(".")[2])
        if rule is None or not rule.makes_summands:
            continue
        if rule.unit == "experts":
            shard_experts(module, shard.compute_span(config.num_experts, collectives.tp))
        module.register_forward_hook(sum_output)


def shard_embedding(embedding_layer: Any, first_token: int, collectives: Collectives) -> Callable[[Tensor], Tensor]:
    """A lookup in which every rank looks up its part of the vocabulary, and the sum has all tokens."""

    def forward(token_ids: Tensor) -> Tensor:
        rows = token_ids - first_token
        is_elsewhere = (rows < 0) | (rows >= len(embedding_layer.weight))
        embeddings = embedding(rows.masked_fill(is_elsewhere, 0), embedding_layer.weight)
        return collectives.all_reduce_sum(embeddings.masked_fill_(is_elsewhere[..., None], 0))

    return forward


def shard_experts(experts: nn.Module, span: shard.Span) -> None:
    """Renumber this rank's experts from 0; `count` stands for an expert of another rank, which transformers skips."""
    first, count = span[0], span[1] - span[0]
    experts.num_experts = count  # type: ignore[assignment]
    experts._is_expert_parallel = True  # type: ignore[assignment]

    def select_own_experts(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        hidden, expert_indices, expert_weights = inputs
        is_elsewhere = (expert_indices < first) | (expert_indices >= first + count)
        own_indices = (expert_indices - first).masked_fill(is_elsewhere, count)
        return hidden, own_indices, expert_weights.masked_fill(is_elsewhere, 0)

    experts.register_forward_pre_hook(select_own_experts)
