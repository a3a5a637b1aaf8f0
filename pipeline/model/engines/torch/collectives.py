"""Several processes with a share each -> one model: sums and gathers where shares meet.

All ranks make the same collective calls in the same order; how many were made in a command is counted,
so that after an error they can tell whether they still stand at the same place. Alone, nothing is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding

from pipeline.model.engines.torch import shard
from pipeline.model.engines.torch.shard import SINGLE_RANK, TensorParallel

if TYPE_CHECKING:
    from pipeline.model.engines.torch.loaded_model import LoadedModel
    from pipeline.model.engines.torch.worker_group import WorkerGroup

HOST = "127.0.0.1"  # a replica is on one machine
MODEL_ERRORS = (RuntimeError, ValueError, IndexError)  # of the model; `limits` tells them apart
SUCCEEDED, FAILED, OUT_OF_MEMORY = 0, 1, 2
TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]
T = TypeVar("T")
all_gather_into: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13


class Collectives:
    def __init__(self, tp: TensorParallel = SINGLE_RANK, worker_group: WorkerGroup | None = None):
        self.tp = tp
        self.worker_group = worker_group  # the others, for rank 0
        self.call_count = 0

    def open_store(self) -> Any:
        """Where the others meet rank 0: a port that the system chose."""
        return TCPStore(HOST, 0, self.tp.size, is_master=True, wait_for_workers=False)

    def join_process_group(self, store: Any, *, device: torch.device, timeout_s: float) -> None:
        """Returns when all are there. `store` is what `listen` gave, or its port.

        Collectives give up later than the watchdog does: it says where it hung.
        """
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if isinstance(store, int):
            store = TCPStore(HOST, store, self.tp.size, is_master=False)
        cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=self.tp.rank,
            world_size=self.tp.size,
            timeout=timedelta(seconds=1.5 * timeout_s),
            device_id=device if cuda else None,
        )

    @contextmanager
    def run_on_all_ranks(self, command: str, *arguments: tuple[Any, ...]) -> Iterator[None]:
        """The others do it as well, each with arguments of its own or all with the same; or it failed for all."""
        if self.worker_group is None:
            yield
            return
        before = self.call_count
        self.worker_group.send_command(command, *arguments)
        try:
            yield
        except MODEL_ERRORS as error:
            self.worker_group.confirm_shared_failure(self.call_count - before, error)
            raise

    def all_reduce_sum(self, summand: Tensor) -> Tensor:
        """In place."""
        self.call_count += 1
        dist.all_reduce(summand)
        return summand

    def all_gather_columns(self, columns: Tensor) -> Tensor:
        """[rows, columns of this rank] -> [rows, columns of all]."""
        if not len(columns):
            return columns.new_empty(0, columns.shape[1] * self.tp.size)
        self.call_count += 1
        rows, width = columns.shape
        parts = columns.new_empty(self.tp.size * rows, width)
        all_gather_into(parts, columns.contiguous())
        return parts.view(-1, rows, width).transpose(0, 1).flatten(1)

    def broadcast(self, block: Tensor, owner: int) -> None:
        """What the owner has, in every rank's block."""
        self.call_count += 1
        dist.broadcast(block, owner)

    def succeed_or_fail_together(self, run: Callable[[], T], device: torch.device) -> T:
        """Work without collectives, that fails for every rank where it fails for one."""
        if self.tp.size == 1:
            return run()
        failure: Exception | None = None
        try:
            made = run()
        except MODEL_ERRORS as error:
            failure = error
        state = (
            SUCCEEDED if failure is None else OUT_OF_MEMORY if isinstance(failure, torch.OutOfMemoryError) else FAILED
        )
        worst = torch.tensor(state, device=device)
        self.call_count += 1
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        if (found := worst.item()) == OUT_OF_MEMORY and state != OUT_OF_MEMORY:
            raise torch.OutOfMemoryError("out of memory on another rank") from failure
        if failure is not None:
            raise failure
        if found != SUCCEEDED:
            raise RuntimeError("it failed on another rank")
        return made

    def close(self) -> None:
        if self.worker_group is not None:
            self.worker_group.close()
        if self.tp.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def connect_shards(loaded: LoadedModel, collectives: Collectives) -> None:
    """Make the shares of a model one, where they meet."""
    if collectives.tp.size == 1:
        return
    text = loaded.language_model.config
    embed = loaded.language_model.embed_tokens
    embed.forward = shard_embedding(embed, shard.compute_span(text.vocab_size, collectives.tp)[0], collectives)
    loaded.lm_head.register_forward_hook(lambda module, given, made: collectives.all_gather_columns(made))
    for layer in loaded.language_model.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda module, given, made: collectives.all_reduce_sum(made))
        if experts := getattr(layer.mlp, "experts", None):
            shard_experts(experts, shard.compute_span(text.num_experts, collectives.tp))
        (experts or layer.mlp.down_proj).register_forward_hook(
            lambda module, given, made: collectives.all_reduce_sum(made)
        )


def shard_embedding(embedding_layer: Any, first_token: int, collectives: Collectives) -> Callable[[Tensor], Tensor]:
    def forward(ids: Tensor) -> Tensor:
        own = ids - first_token
        others = (own < 0) | (own >= len(embedding_layer.weight))
        return collectives.all_reduce_sum(
            embedding(own.masked_fill(others, 0), embedding_layer.weight).masked_fill_(others[..., None], 0)
        )

    return forward


def shard_experts(experts: nn.Module, span: shard.Span) -> None:
    """A token that asks for another rank's expert gets nothing here: transformers skips the number after the last."""
    first, count = span[0], span[1] - span[0]
    experts.num_experts = count  # type: ignore[assignment]
    experts._is_expert_parallel = True  # type: ignore[assignment]

    def own(module: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        hidden, index, shares = given
        others = (index < first) | (index >= first + count)
        return hidden, (index - first).masked_fill(others, count), shares.masked_fill(others, 0)

    experts.register_forward_pre_hook(own)
