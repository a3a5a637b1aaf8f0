"""Chooses the next token of each sequence from its logits, and says how likely the model found it.

A sequence uses one random number of its own and its own distribution, so its neighbours in the batch cannot change its
tokens. Log-probabilities are the model's own: without the grammar mask, temperature, top_k and top_p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ItemError
from pipeline.model.engines.torch.host_memory import allocate_pinned, copy_to_device
from pipeline.types import Sampling

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import AnswerMatcher

SORTED_AT_ONCE = 32  # sequences whose whole vocabulary is sorted together; bounds the memory


def sample_tokens(logits: Tensor, settings: Sequence[Sampling], random_numbers: Sequence[float]) -> Tensor:
    """[sequences, vocabulary] in float32 -> tokens [sequences], on the device of the logits."""
    tokens = logits.argmax(-1)
    for rows in group_drawn_rows(settings, logits.shape[1]):
        indices = copy_to_device(rows, logits.device)
        row_settings, numbers = [settings[row] for row in rows], [random_numbers[row] for row in rows]
        drawn = draw_tokens(logits.index_select(0, indices), row_settings, numbers)
        tokens.index_copy_(0, indices, drawn)
    return tokens


def group_drawn_rows(settings: Sequence[Sampling], vocabulary_size: int) -> Iterator[list[int]]:
    """The rows that are not greedy: those without a cut, those with top_k, and the others, which need a full sort."""
    drawn = [row for row, sampling in enumerate(settings) if sampling.temperature > 0]
    with_top_k = [row for row in drawn if (settings[row].top_k or vocabulary_size) < vocabulary_size]
    others = [row for row in drawn if row not in set(with_top_k)]
    uncut = [row for row in others if settings[row].top_p >= 1]
    only_top_p = [row for row in others if settings[row].top_p < 1]
    yield from (rows for rows in (uncut, with_top_k) if rows)
    for first in range(0, len(only_top_p), SORTED_AT_ONCE):
        yield only_top_p[first : first + SORTED_AT_ONCE]


def draw_tokens(logits: Tensor, settings: Sequence[Sampling], random_numbers: Sequence[float]) -> Tensor:
    """Temperature, then top_k, then top_p, as transformers orders them; the random number picks from what is left."""

    def to_column(values: Sequence[float]) -> Tensor:
        return copy_to_device(np.asarray(values, np.float32)[:, None], logits.device)

    vocabulary_size = logits.shape[1]
    logits = logits / to_column([sampling.temperature for sampling in settings])
    widths = [min(sampling.top_k or vocabulary_size, vocabulary_size) for sampling in settings]
    tokens_by_rank = None
    if max(widths) < vocabulary_size:
        logits, tokens_by_rank = logits.topk(max(widths))
    elif any(sampling.top_p < 1 for sampling in settings):
        logits, tokens_by_rank = logits.sort(stable=True, descending=True)
    probabilities = logits.softmax(-1)
    if tokens_by_rank is not None:
        ranks = torch.arange(probabilities.shape[1], device=logits.device)
        probabilities = probabilities * (ranks < to_column(widths))
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        top_p = to_column([sampling.top_p for sampling in settings])
        probabilities = probabilities * (probabilities.cumsum(-1) - probabilities < top_p)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    thresholds = (to_column(random_numbers) * total).minimum(total.nextafter(torch.zeros_like(total)))
    places = torch.searchsorted(cumulative, thresholds, right=True)  # the first that the threshold does not reach
    return (places if tokens_by_rank is None else tokens_by_rank.gather(1, places))[:, 0]


@torch.inference_mode()
def apply_grammar_masks(logits: Tensor, matchers: Sequence[AnswerMatcher | None]) -> dict[int, ItemError]:
    """Set the logits of forbidden tokens to -inf, in place. Returns errors by row, of grammars that cannot go on."""
    errors: dict[int, ItemError] = {}
    guided_rows = [(row, matcher) for row, matcher in enumerate(matchers) if matcher is not None]
    if not guided_rows:
        return errors
    shape = logits.shape[0], -(-logits.shape[1] // 32)  # one bit per token
    mask_words = allocate_pinned(shape, torch.int32, logits.device).fill_(-1)
    for row, matcher in guided_rows:
        try:
            matcher.fill_mask(mask_words[row].numpy())
        except ItemError as error:
            errors[row] = error
            mask_words[row] = -1
    forbidden = build_forbidden_mask(mask_words, logits.device)[:, : logits.shape[1]]
    logits.masked_fill_(forbidden, -torch.inf)
    return errors


def build_forbidden_mask(mask_words: Tensor, device: torch.device) -> Tensor:
    """Bits that are not set, as booleans. Words are unpacked on a GPU, because they are an eighth of the bytes."""
    if device.type == "cpu":
        mask_bytes = mask_words.numpy().view(np.uint8)
        return torch.from_numpy(np.unpackbits(~mask_bytes, axis=1, bitorder="little").view(np.bool_))
    bits = torch.arange(32, dtype=torch.int32, device=device)
    words = mask_words.to(device, non_blocking=True)[:, :, None]
    return ((words >> bits) & 1 == 0).flatten(1)
