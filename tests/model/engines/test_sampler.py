"""Sampling follows the right distribution, and depends only on a row's own seed and logits."""

import numpy as np
import pytest
import torch

from pipeline.errors import GenerateError
from pipeline.model.engines.torch.sampler import apply_grammar_masks, sample_tokens
from pipeline.types import Sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0]])


NUMBERS = np.random.default_rng(0).random(4000).tolist()


def sample_frequencies(sampling: Sampling) -> np.ndarray:
    tokens = sample_tokens(LOGITS.expand(len(NUMBERS), -1), [sampling] * len(NUMBERS), NUMBERS)
    return np.bincount(tokens, minlength=5) / len(NUMBERS)


def test_greedy_takes_the_likeliest_token():
    assert sample_tokens(LOGITS, [Sampling()], [0.3]).tolist() == [4]


def test_samples_follow_the_distribution_at_a_temperature():
    expected = (LOGITS[0] / 0.7).softmax(-1).numpy()
    assert np.abs(sample_frequencies(Sampling(temperature=0.7)) - expected).max() < 0.03


def test_top_k_and_top_p_cut_the_tail_as_transformers_does():
    from pipeline.model import hf_models

    hf_models.import_transformers()
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    sampling = Sampling(temperature=1.5, top_k=4, top_p=0.8)
    scores = LOGITS.clone()
    for warper in (TemperatureLogitsWarper(1.5), TopKLogitsWarper(4), TopPLogitsWarper(0.8)):
        scores = warper(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    assert (expected == 0).any()
    frequencies = sample_frequencies(sampling)
    assert np.abs(frequencies - expected).max() < 0.03
    assert (frequencies[expected == 0] == 0).all()


@pytest.mark.parametrize("cut", [{}, {"top_k": 2}, {"top_p": 0.8}])
def test_random_numbers_of_zero_and_almost_one_draw_possible_tokens(cut):
    logits = torch.tensor([[-torch.inf, 2.0, 0.0, 3.0, -torch.inf]])  # a grammar forbids the first and the last
    sampling = [Sampling(temperature=1.0, **cut)] * 2
    tokens = sample_tokens(logits.expand(2, -1), sampling, [0.0, 1 - 2**-53]).tolist()
    assert tokens == ([3, 1] if cut else [1, 3])


def test_other_rows_do_not_change_a_rows_draw():
    rows = torch.randn(60, 50, generator=torch.Generator().manual_seed(1))
    cuts = [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.9}, {"top_k": 50}]
    sampling = [Sampling(temperature=(0.0, 0.5, 1.0, 2.0)[row % 4], **cuts[row % 5]) for row in range(60)]
    together = sample_tokens(rows, sampling, NUMBERS[:60]).tolist()
    alone = [sample_tokens(rows[row : row + 1], [sampling[row]], [NUMBERS[row]]).item() for row in range(60)]
    assert together == alone


def test_the_whole_vocabulary_is_sorted_only_for_top_p_alone(monkeypatch):
    """A sort of 256 rows takes 1.5 GB."""
    monkeypatch.setattr(torch.Tensor, "sort", None)
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    sampling = [Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=20, top_p=0.8)]
    assert len(sample_tokens(rows, sampling, [0.5] * 3)) == 3


def test_a_grammar_forbids_all_other_tokens_and_one_without_an_ending_fails_alone():
    class Only:
        def __init__(self, token: int):
            self.token = token

        def fill_mask(self, words: np.ndarray) -> None:
            words[:] = 0
            words[self.token // 32] = np.int32(1) << np.int32(self.token % 32)

    class Stuck:
        def fill_mask(self, words: np.ndarray) -> None:
            raise GenerateError("no_close", "no ending fits")

    logits = torch.randn(4, 70, generator=torch.Generator().manual_seed(2))
    free = logits[1].argmax().item()
    errors = apply_grammar_masks(logits, [Only(66), None, Stuck(), Only(3)])
    tokens = sample_tokens(logits, [Sampling()] * 4, [0.5] * 4).tolist()
    assert [tokens[0], tokens[1], tokens[3]] == [66, free, 3]
    assert {row: error.kind for row, error in errors.items()} == {2: "no_close"}
