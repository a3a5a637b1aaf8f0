"""Prompts and continuations of jobs with choices."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.job.answer_section import AnswerSection
from pipeline.job.spec import Job
from pipeline.model import family_loader
from pipeline.model.families.generic import GenericFamily
from pipeline.model.row_encoders.choice_encoder import NO_WORDS, YES_WORDS, ChoiceEncoder
from pipeline.types import Clip, Turn

PICTURE = Clip("image", np.zeros((1, 3, 56, 84), np.uint8), (84, 56))
TURNS = (Turn("user", ("first", PICTURE)), Turn("assistant", ("a",)), Turn("user", (PICTURE, "What is it?")))


def load_family(weights="builtin:tiny", **answer):
    job = {
        "name": "t",
        "input": {"manifest": "m"},
        "model": {"weights": weights},
        "output": {"path": "o"},
        "answer": {"choices": ["red", "blue"], **answer},
    }
    return family_loader.open_job_family(Job.model_validate(job))


@pytest.fixture(scope="module")
def family():
    return load_family()


def encode(family, **answer):
    """The prompt, the continuations, and of each all tokens of prompt and continuation."""
    _, encoded, continuations, _ = ChoiceEncoder(family, AnswerSection(**answer)).encode_turns(TURNS)
    return encoded, continuations, [[*encoded.input_ids.tolist(), *part.token_ids] for part in continuations]


def tokenize(family, text):
    return family.tokenizer.encode(text, add_special_tokens=False).ids


def test_each_continuation_is_the_prompt_with_the_choice_as_its_answer(family):
    labels = ["red square", "blue", "yellow"]
    encoded, continuations, wholes = encode(family, choices=labels)
    plain = family.encode_turns(TURNS)
    assert wholes == [[*plain.input_ids.tolist(), *tokenize(family, label)] for label in labels]
    assert [part.text for part in continuations] == labels
    assert encoded.vision_tokens == plain.vision_tokens


def test_the_end_of_the_turn_counts_only_where_a_choice_begins_like_another(family):
    (end,) = [family.tokenizer.token_to_id("<|im_end|>")]
    _, continuations, _ = encode(family, choices=["red", "red square", "blue"])
    assert [part.token_ids[-1] for part in continuations] == [end] * 3
    _, continuations, _ = encode(family, choices=["red", "blue"])
    assert end not in {token for part in continuations for token in part.token_ids}


def test_what_all_answers_begin_with_is_a_part_of_the_prompt_and_has_its_positions(family):
    form = '{"caption":"A {choice}'
    encoded, continuations, wholes = encode(family, choices=["red", "blue"], choice_format=form)
    plain = family.encode_turns(TURNS)
    assert wholes == [
        [*plain.input_ids.tolist(), *tokenize(family, form.replace("{choice}", label))] for label in ("red", "blue")
    ]
    assert len({part.token_ids[0] for part in continuations}) == 2
    added = len(encoded.input_ids) - len(plain.input_ids)
    assert added > 1
    assert encoded.positions.shape == (3, len(encoded.input_ids))
    assert (encoded.positions[:, -added:] == plain.positions.max() + 1 + np.arange(added)).all()


def test_with_multi_the_last_turn_asks_about_each_choice_and_yes_or_no_follows(family):
    choices = {"fire": "open flames", "smoke": None}
    _, continuations, wholes = encode(family, choices=choices, multi=True)
    words = [*YES_WORDS, *NO_WORDS]
    assert [part.text for part in continuations] == words * 2
    for index, described in enumerate(["fire: open flames", "smoke"]):
        question = f"\nDoes this apply: {described}? Answer with yes or no."
        turns = (*TURNS[:2], Turn("user", (PICTURE, "What is it?", question)))
        asked = family.encode_turns(turns).input_ids.tolist()
        own = slice(4 * index, 4 * index + 4)
        assert wholes[own] == [[*asked, *tokenize(family, word)] for word in words]
        for part, word in zip(continuations[own], words, strict=True):
            assert list(part.token_ids[part.scored_from :]) == tokenize(family, word)
            assert part.question == question


def test_a_model_that_thinks_answers_behind_an_empty_thought():
    family = load_family("builtin:tiny-qwen3_5")
    assert not family.thinking
    encoded = ChoiceEncoder(family, AnswerSection(choices=["red", "blue"])).encode_turns(TURNS).prompt
    text = family.tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False)
    assert text.endswith("</think>\n\n") == ("<think>" in family.chat_format.answer_prefix)


def test_a_prompt_that_another_program_encodes_has_texts_alone():
    family = GenericFamily(family_loader.CheckpointFiles({}), family_loader.build_byte_tokenizer())
    _, encoded, continuations, _ = ChoiceEncoder(family, AnswerSection(choices=["red", "blue"])).encode_turns(TURNS)
    assert len(encoded.input_ids) == 0 < encoded.estimated_tokens
    assert [(part.text, part.token_ids) for part in continuations] == [("red", ()), ("blue", ())]
