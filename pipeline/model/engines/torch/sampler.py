"""Logits -> the next token of each row, and how likely the model found it.

A row's choice depends on its own logits, its own seed and how many tokens it has: one number from its
own generator is looked up in its own distribution, so neighbours in a batch cannot change it. The
log-probability is of what was allowed (by a grammar), before temperature and cut-offs.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ItemError
from pipeline.types import Sampling


def sample_tokens(logits: Tensor, sampling: Sequence[Sampling], generators: Sequence[Random]) -> tuple[Tensor, Tensor]:
    """[rows, vocabulary] -> tokens and log-probabilities, where the logits are."""
    logits = logits.float()
    tokens = logits.argmax(-1)
    drawn = [row for row, how in enumerate(sampling) if how.temperature > 0]
    if drawn:
        chosen = draw_tokens(
            logits[drawn], [sampling[row] for row in drawn], [generators[row].random() for row in drawn]
        )
        tokens[drawn] = chosen
    likely = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens, likely


def draw_tokens(logits: Tensor, sampling: Sequence[Sampling], random_numbers: Sequence[float]) -> Tensor:
    """Temperature, then top_k, then top_p, as transformers orders them; then the number picks."""
    column = logits.new_tensor
    temperature, top_p = column([[how.temperature] for how in sampling]), column([[how.top_p] for how in sampling])
    top_k = column([[how.top_k or logits.shape[1]] for how in sampling])
    shares, order = (logits / temperature).softmax(-1).sort(stable=True, descending=True)
    shares = shares * (torch.arange(shares.shape[1], device=logits.device) < top_k)
    shares = shares / shares.sum(-1, keepdim=True)
    shares = shares * (shares.cumsum(-1) - shares < top_p)
    reached = shares.cumsum(-1)
    at = column([[number] for number in random_numbers]) * reached[:, -1:]
    rank: Tensor = torch.searchsorted(reached, at)
    return order.gather(1, rank)[:, 0]


@torch.inference_mode()
def apply_grammar_masks(logits: Tensor, matchers: Sequence[Any]) -> dict[int, ItemError]:
    """Put out of reach what each row's grammar does not allow; the rows whose grammar allows nothing.

    A matcher of None allows everything.
    """
    errors: dict[int, ItemError] = {}
    ruled = [row for row, matcher in enumerate(matchers) if matcher is not None]
    if not ruled:
        return errors
    shape = logits.shape[0], -(-logits.shape[1] // 32)
    # pinned, or sending them might wait for the pass that is under way
    words = torch.full(shape, -1, dtype=torch.int32, pin_memory=logits.is_cuda).numpy()
    for row in ruled:
        try:
            matchers[row].fill(words[row])
        except ItemError as error:
            errors[row], words[row] = error, -1
    logits.masked_fill_(build_forbidden_mask(words, logits.device)[:, : logits.shape[1]], -torch.inf)
    return errors


def build_forbidden_mask(mask_words: NDArray[np.int32], device: torch.device) -> Tensor:
    """The bits that are not set, one a token. They cross to a GPU packed, as an eighth of the bytes."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(~mask_words.view(np.uint8), axis=1, bitorder="little").view(np.bool_))
    bits = torch.from_numpy(mask_words).to(device, non_blocking=True)[:, :, None] >> torch.arange(32, device=device)
    return ((bits & 1) == 0).flatten(1)
