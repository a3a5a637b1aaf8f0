"""Turns the choices of a job into continuations of a row's prompt, whose probabilities an engine computes.

One of several: the continuations are the answers as the model would write them. If one of them begins like another, in
tokens, then the token that ends a turn counts as a part of all of them: otherwise `red` would be at least as probable
as `red wine`. With `multi` the prompt asks about one choice, and the continuations are yes and no.

The model does not think: where it otherwise would, the answer follows an empty thought.

What all continuations begin with belongs to the prompt: it is computed once and cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, takewhile

import numpy as np

from pipeline.job.answer_section import CHOICE, AnswerSection
from pipeline.model.families.base import EncodedPrompt, Family
from pipeline.model.prompt import SpecialToken
from pipeline.model.row_encoders.base import EncodedRow
from pipeline.schema.choice_schema import describe_choice
from pipeline.types import Continuation, Turn

MULTI_FORMAT = f"\nDoes this apply: {CHOICE}? Answer with yes or no."
YES_WORDS, NO_WORDS = ("yes", "Yes"), ("no", "No")  # each as models write it
Tokens = list[int]


class ChoiceEncoder:
    def __init__(self, family: Family, answer: AnswerSection):
        self.family = family
        choices = answer.choices or {}
        self.questions: list[str] = []  # with `multi`, one for each choice
        self.answers = [*YES_WORDS, *NO_WORDS]
        if answer.multi:
            described = [describe_choice(*choice) for choice in choices.items()]
            self.questions = [(answer.choice_format or MULTI_FORMAT).replace(CHOICE, text) for text in described]
        else:
            self.answers = [(answer.choice_format or CHOICE).replace(CHOICE, label) for label in choices]
        self.answer_tokens = self.encode_answers() if family.knows_model else [[] for _ in self.answers]

    def encode_answers(self) -> list[Tokens]:
        answers = [self.family.tokenizer.encode(text, add_special_tokens=False).ids for text in self.answers]
        end_token = self.family.tokenizer.token_to_id(SpecialToken.END.value)
        ending = [end_token] if end_token is not None and has_prefixes(answers) else []
        return [tokens + ending for tokens in answers]

    def encode_turns(self, turns: tuple[Turn, ...]) -> EncodedRow:
        """The prompt that all choices share, and what may follow it."""
        questions = self.questions or [""]
        prompts = [self.family.encode_turns(append_question(turns, question)) for question in questions]
        shared = count_shared([prompt.input_ids.tolist() for prompt in prompts])
        first = prompts[0]
        encoded = replace(first, input_ids=first.input_ids[:shared], positions=first.positions[:, :shared])
        tails: list[Tokens] = [prompt.input_ids[shared:].tolist() for prompt in prompts]
        continuations = tuple(
            Continuation((*tail, *tokens), len(tail), text, question)
            for tail, question in zip(tails, questions, strict=True)
            for tokens, text in zip(self.answer_tokens, self.answers, strict=True)
        )
        return EncodedRow(turns, *move_shared_tokens(encoded, continuations))


def append_question(turns: Sequence[Turn], question: str) -> Sequence[Turn]:
    """The text goes to the end of the last turn, behind its media, so that what comes before is computed once."""
    return [*turns[:-1], replace(turns[-1], parts=(*turns[-1].parts, question))] if question else turns


def move_shared_tokens(
    encoded: EncodedPrompt, continuations: tuple[Continuation, ...]
) -> tuple[EncodedPrompt, tuple[Continuation, ...]]:
    """Move the tokens with which all continuations begin to the prompt."""
    count = count_shared([continuation.token_ids for continuation in continuations])
    if not count:
        return encoded, continuations
    moved = np.asarray(continuations[0].token_ids[:count], np.int32)
    positions = encoded.positions.max() + 1 + np.arange(count, dtype=np.int32)
    encoded = replace(
        encoded,
        input_ids=np.concatenate([encoded.input_ids, moved]),
        positions=np.concatenate([encoded.positions, np.broadcast_to(positions, (len(encoded.positions), count))], 1),
    )
    return encoded, tuple(
        replace(part, token_ids=part.token_ids[count:], scored_from=max(0, part.scored_from - count))
        for part in continuations
    )


def count_shared(token_lists: Sequence[Sequence[int]]) -> int:
    """How many tokens all lists begin with.

    >>> count_shared([[1, 2, 3], [1, 2], [1, 2, 4]])
    2
    """
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*token_lists, strict=False)))


def has_prefixes(token_lists: Sequence[Tokens]) -> bool:
    """Whether one list begins with another.

    >>> has_prefixes([[1, 2], [3], [1]]), has_prefixes([[1, 2], [3], [2]])
    (True, False)
    """
    ordered = sorted(token_lists)  # a list is followed by those that begin with it
    return any(later[: len(tokens)] == tokens for tokens, later in pairwise(ordered))
