"""Chooses how the rows of a job are encoded: one encoder for each kind of answer."""

from __future__ import annotations

from pipeline.job.answer_section import AnswerSection
from pipeline.model.families.base import Family
from pipeline.model.row_encoders.base import EncodedRow, RowEncoder
from pipeline.model.row_encoders.choice_encoder import ChoiceEncoder
from pipeline.model.row_encoders.embedding_encoder import EmbeddingEncoder
from pipeline.model.row_encoders.rerank_encoder import RerankEncoder
from pipeline.types import Turn


def choose_encoder(family: Family, answer: AnswerSection) -> RowEncoder:
    if answer.choices:
        return ChoiceEncoder(family, answer)
    if answer.embedding:
        return EmbeddingEncoder(family, answer.embedding)
    if answer.rerank:
        return RerankEncoder(family, answer.rerank)
    return PromptEncoder(family)


class PromptEncoder:
    """The model goes on to write the answer."""

    def __init__(self, family: Family):
        self.family = family

    def encode_turns(self, turns: tuple[Turn, ...]) -> EncodedRow:
        return EncodedRow(turns, self.family.encode_turns(turns))
