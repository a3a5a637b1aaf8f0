"""What vLLM is asked for a request, without vLLM: its prompt, and the tokens behind it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest

from pipeline.job.answer_section import AnswerSection
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engines.vllm.continuation_scores import MAX_TOKENS, ContinuationScores, plan_questions
from pipeline.model.engines.vllm.prompt_inputs import build_media_key, encode_prompt
from pipeline.model.row_encoders.choose_encoder import choose_encoder
from pipeline.types import Clip, Continuation, Request, Turn

ANSWERS = {
    "choices that begin alike": {"choices": {"red wine": None, "red": None, "red beer": None}},
    "choices behind the same words": {"choices": {"a": None, "b": None}, "choice_format": "It is {choice}"},
    "several choices": {"choices": {"red": None, "blue": None}, "multi": True},
    "a vector": {"embedding": {"from": "language"}},
    "a rank": {"rerank": {"query": "a red car"}},
}


@pytest.fixture(scope="module")
def family() -> Any:
    return family_loader.load_family(checkpoint_location.locate_checkpoint("builtin:tiny"))


def build_clip(seed: int = 0, *, frames: int = 1, times: tuple[float, ...] = ()) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 3, 56, 84), dtype=np.uint8)
    return Clip("video" if times else "image", pixels, (84, 56), times=times, fps=1.0)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_prompt_has_the_tokens_of_the_request_and_one_for_each_medium(family, answer):
    turns = (Turn("user", (build_clip(1), "what is red", build_clip(2), "?")),)
    row = choose_encoder(family, AnswerSection(**answer)).encode_turns(turns)
    prompt = row.prompt
    request = Request(
        "a", row.turns, prompt.input_ids, prompt.positions, continuations=row.continuations, pooling=row.pooling
    )
    collapsed = [
        token
        for token, run in groupby(request.input_ids.tolist())
        for _ in ((0,) if token == family.image_token else run)
    ]
    assert encode_prompt(request, family) == collapsed
    assert collapsed.count(family.image_token) == 2


def test_media_have_one_key_if_the_model_sees_the_same():
    film = build_clip(frames=2, times=(0.0, 1.0))
    assert build_media_key(build_clip()) == build_media_key(build_clip())
    others = [build_clip(), build_clip(3), film, build_clip(frames=2, times=(0.0, 1.5)), build_clip(3, frames=2)]
    assert len({build_media_key(clip) for clip in others}) == len(others)


def test_every_token_of_every_continuation_is_asked_once_behind_those_before_it():
    given = [Continuation((7, token, 8), 1, "") for token in range(10, 10 + MAX_TOKENS + 1)]
    given += [Continuation((7,), 0, ""), Continuation((7, 10), 1, "")]
    questions = plan_questions(given)
    assert [len(question.beginning) for question in questions] == sorted(
        len(question.beginning) for question in questions
    )
    assert max(len(question.parts) for question in questions) == MAX_TOKENS
    scores = ContinuationScores(given)
    for question in questions:  # a token has the log-probability of its own number, less what stands before it
        told = {token: -float(token) - sum(question.beginning) for token in question.parts}
        is_complete = scores.add(question, told)
        assert is_complete == (question is questions[-1])
    for part, logprob in zip(given, scores.logprobs, strict=True):
        places = range(part.scored_from, len(part.token_ids))
        assert logprob == -sum(part.token_ids[place] + sum(part.token_ids[:place]) for place in places)
