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
from pipeline.model.engines.torch.shard import ALONE, Place

if TYPE_CHECKING:
    from pipeline.model.engines.torch.loaded_model import Loaded
    from pipeline.model.engines.torch.worker_group import Crew

HOST = "127.0.0.1"  # a replica is on one machine
ERRORS = (RuntimeError, ValueError, IndexError)  # of the model; `limits` tells them apart
FINE, FAILED, FULL = 0, 1, 2
TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]
T = TypeVar("T")
all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13


class Ranks:
    def __init__(self, place: Place = ALONE, crew: Crew | None = None):
        self.place = place
        self.crew = crew  # the others, for rank 0
        self.calls = 0

    def listen(self) -> Any:
        """Where the others meet rank 0: a port that the system chose."""
        return TCPStore(HOST, 0, self.place.size, is_master=True, wait_for_workers=False)

    def join(self, store: Any, *, device: torch.device, limit_s: float) -> None:
        """Returns when all are there. `store` is what `listen` gave, or its port.

        Collectives give up later than the watchdog does: it says where it hung.
        """
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if isinstance(store, int):
            store = TCPStore(HOST, store, self.place.size, is_master=False)
        cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=self.place.rank,
            world_size=self.place.size,
            timeout=timedelta(seconds=1.5 * limit_s),
            device_id=device if cuda else None,
        )

    @contextmanager
    def together(self, do: str, *arguments: tuple[Any, ...]) -> Iterator[None]:
        """The others do it as well, each with arguments of its own or all with the same; or it failed for all."""
        if self.crew is None:
            yield
            return
        before = self.calls
        self.crew.tell(do, *arguments)
        try:
            yield
        except ERRORS as error:
            self.crew.agree(self.calls - before, error)
            raise

    def sum(self, summand: Tensor) -> Tensor:
        """In place."""
        self.calls += 1
        dist.all_reduce(summand)
        return summand

    def gather(self, columns: Tensor) -> Tensor:
        """[rows, columns of this rank] -> [rows, columns of all]."""
        if not len(columns):
            return columns.new_empty(0, columns.shape[1] * self.place.size)
        self.calls += 1
        rows, width = columns.shape
        parts = columns.new_empty(self.place.size * rows, width)
        all_gather(parts, columns.contiguous())
        return parts.view(-1, rows, width).transpose(0, 1).flatten(1)

    def share(self, block: Tensor, owner: int) -> None:
        """What the owner has, in every rank's block."""
        self.calls += 1
        dist.broadcast(block, owner)

    def all_or_none(self, work: Callable[[], T], device: torch.device) -> T:
        """Work without collectives, that fails for every rank where it fails for one."""
        if self.place.size == 1:
            return work()
        failure: Exception | None = None
        try:
            made = work()
        except ERRORS as error:
            failure = error
        state = FINE if failure is None else FULL if isinstance(failure, torch.OutOfMemoryError) else FAILED
        worst = torch.tensor(state, device=device)
        self.calls += 1
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        if (found := worst.item()) == FULL and state != FULL:
            raise torch.OutOfMemoryError("out of memory on another rank") from failure
        if failure is not None:
            raise failure
        if found != FINE:
            raise RuntimeError("it failed on another rank")
        return made

    def close(self) -> None:
        if self.crew is not None:
            self.crew.close()
        if self.place.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def connect(loaded: Loaded, ranks: Ranks) -> None:
    """Make the shares of a model one, where they meet."""
    if ranks.place.size == 1:
        return
    text = loaded.language.config
    embed = loaded.language.embed_tokens
    embed.forward = divided_embedding(embed, shard.span(text.vocab_size, ranks.place)[0], ranks)
    loaded.head.register_forward_hook(lambda module, given, made: ranks.gather(made))
    for layer in loaded.language.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda module, given, made: ranks.sum(made))
        if experts := getattr(layer.mlp, "experts", None):
            divide_experts(experts, shard.span(text.num_experts, ranks.place))
        (experts or layer.mlp.down_proj).register_forward_hook(lambda module, given, made: ranks.sum(made))


def divided_embedding(embed: Any, first: int, ranks: Ranks) -> Callable[[Tensor], Tensor]:
    def forward(ids: Tensor) -> Tensor:
        own = ids - first
        others = (own < 0) | (own >= len(embed.weight))
        return ranks.sum(embedding(own.masked_fill(others, 0), embed.weight).masked_fill_(others[..., None], 0))

    return forward


def divide_experts(experts: nn.Module, span: shard.Span) -> None:
    """A token that asks for another rank's expert gets nothing here: transformers skips the number after the last."""
    first, count = span[0], span[1] - span[0]
    experts.num_experts = count  # type: ignore[assignment]
    experts._is_expert_parallel = True  # type: ignore[assignment]

    def own(module: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        hidden, index, shares = given
        others = (index < first) | (index >= first + count)
        return hidden, (index - first).masked_fill(others, count), shares.masked_fill(others, 0)

    experts.register_forward_pre_hook(own)
