"""Sampling follows the right distribution, and depends only on a row's own seed and logits."""

from random import Random

import numpy as np
import pytest
import torch

from pipeline.errors import GenerateError
from pipeline.model.engines.torch.sampler import apply_grammar_masks, sample_tokens
from pipeline.types import Sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0]])


def sample_lists(*arguments):
    tokens, logprobs = sample_tokens(*arguments)
    return tokens.tolist(), logprobs.tolist()


def sample_frequencies(sampling: Sampling, count: int = 4000) -> np.ndarray:
    tokens, _ = sample_lists(LOGITS.expand(count, -1), [sampling] * count, [Random(seed) for seed in range(count)])
    return np.bincount(tokens, minlength=5) / count


def test_greedy_takes_the_likeliest_token_and_returns_its_logprob():
    tokens, logprobs = sample_lists(LOGITS, [Sampling()], [Random(0)])
    assert tokens == [4]
    assert logprobs == pytest.approx(LOGITS.log_softmax(-1)[0, 4:].tolist())


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


def test_random_numbers_of_zero_and_almost_one_stay_within_top_k():
    class Fixed(Random):
        def __init__(self, number: float):
            super().__init__(0)
            self.number = number

        def random(self) -> float:
            return self.number

    sampling = Sampling(temperature=1.0, top_k=2)
    tokens, _ = sample_lists(LOGITS.expand(2, -1), [sampling] * 2, [Fixed(0.0), Fixed(1 - 2**-53)])
    assert tokens == [4, 0]


def test_other_rows_do_not_change_a_rows_draw():
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    sampling = [Sampling(temperature=t) for t in (0.0, 0.5, 1.0, 0.0, 2.0, 1.0)]
    together, _ = sample_lists(rows, sampling, [Random(seed) for seed in range(6)])
    alone = [sample_lists(rows[row : row + 1], [sampling[row]], [Random(row)])[0][0] for row in range(6)]
    assert together == alone


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
    tokens, logprobs = sample_lists(logits, [Sampling()] * 4, [Random(0)] * 4)
    assert [tokens[0], tokens[1], tokens[3]] == [66, free, 3]
    assert logprobs[0] == 0.0
    assert {row: error.kind for row, error in errors.items()} == {2: "no_close"}
