"""Chooses the next token of each sequence from its logits, and says how likely the model found it.

A sequence uses one number from its own random generator and its own distribution, so its neighbours in the batch cannot
change its tokens. Log-probabilities are those after the grammar mask, before temperature, top_k and top_p.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ItemError
from pipeline.types import Sampling

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import AnswerMatcher


def sample_tokens(logits: Tensor, settings: Sequence[Sampling], generators: Sequence[Random]) -> tuple[Tensor, Tensor]:
    """[sequences, vocabulary] -> tokens and log-probabilities, [sequences] each, on the device of the logits."""
    logits = logits.float()
    tokens = logits.argmax(-1)
    drawn_rows = [row for row, sampling in enumerate(settings) if sampling.temperature > 0]
    if drawn_rows:
        random_numbers = [generators[row].random() for row in drawn_rows]
        tokens[drawn_rows] = draw_tokens(logits[drawn_rows], [settings[row] for row in drawn_rows], random_numbers)
    logprobs = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens, logprobs


def draw_tokens(logits: Tensor, settings: Sequence[Sampling], random_numbers: Sequence[float]) -> Tensor:
    """Temperature, then top_k, then top_p, as transformers orders them; the random number picks from what is left."""

    def to_column(values: Sequence[float]) -> Tensor:
        return logits.new_tensor(values)[:, None]

    temperature = to_column([sampling.temperature for sampling in settings])
    top_k = to_column([sampling.top_k or logits.shape[1] for sampling in settings])
    top_p = to_column([sampling.top_p for sampling in settings])
    probabilities, tokens_by_rank = (logits / temperature).softmax(-1).sort(stable=True, descending=True)
    probabilities = probabilities * (torch.arange(probabilities.shape[1], device=logits.device) < top_k)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    probabilities = probabilities * (probabilities.cumsum(-1) - probabilities < top_p)
    cumulative = probabilities.cumsum(-1)
    thresholds = to_column(random_numbers) * cumulative[:, -1:]
    ranks: Tensor = torch.searchsorted(cumulative, thresholds)
    return tokens_by_rank.gather(1, ranks)[:, 0]


@torch.inference_mode()
def apply_grammar_masks(logits: Tensor, matchers: Sequence[AnswerMatcher | None]) -> dict[int, ItemError]:
    """Set the logits of forbidden tokens to -inf, in place. Returns errors by row, of grammars that cannot go on."""
    errors: dict[int, ItemError] = {}
    guided_rows = [(row, matcher) for row, matcher in enumerate(matchers) if matcher is not None]
    if not guided_rows:
        return errors
    shape = logits.shape[0], -(-logits.shape[1] // 32)  # one bit per token
    # pinned memory, or the copy to the device could wait for the step that runs there
    mask_words = torch.full(shape, -1, dtype=torch.int32, pin_memory=logits.is_cuda).numpy()
    for row, matcher in guided_rows:
        try:
            matcher.fill_mask(mask_words[row])
        except ItemError as error:
            errors[row] = error
            mask_words[row] = -1
    forbidden = build_forbidden_mask(mask_words, logits.device)[:, : logits.shape[1]]
    logits.masked_fill_(forbidden, -torch.inf)
    return errors


def build_forbidden_mask(mask_words: NDArray[np.int32], device: torch.device) -> Tensor:
    """Bits that are not set, as booleans. Words are unpacked on a GPU, because they are an eighth of the bytes."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(~mask_words.view(np.uint8), axis=1, bitorder="little").view(np.bool_))
    bits = torch.from_numpy(mask_words).to(device, non_blocking=True)[:, :, None] >> torch.arange(32, device=device)
    return ((bits & 1) == 0).flatten(1)
