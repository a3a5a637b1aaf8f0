"""Turns a row into the question whether it fits a query, in the words that Qwen3-VL-Reranker was trained on."""

from __future__ import annotations

from pipeline.job.rerank_section import RerankSection
from pipeline.model.families.base import Family
from pipeline.model.row_encoders.base import EncodedRow
from pipeline.types import Continuation, Turn

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
DEFAULT_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
ANSWERS = ("yes", "no")


class RerankEncoder:
    def __init__(self, family: Family, rerank: RerankSection):
        self.family = family
        self.question = f"<Instruct>: {rerank.instruction or DEFAULT_INSTRUCTION}<Query>:{rerank.query}\n<Document>:"
        self.continuations = tuple(self.encode_answer(answer) for answer in ANSWERS)

    def encode_answer(self, answer: str) -> Continuation:
        knows_model = self.family.knows_model
        tokens = self.family.tokenizer.encode(answer, add_special_tokens=False).ids if knows_model else ()
        return Continuation(tuple(tokens), 0, answer)

    def encode_turns(self, turns: tuple[Turn, ...]) -> EncodedRow:
        """What the row's turns show and say is the document."""
        document = [part for turn in turns for part in turn.parts]
        asked = (Turn("system", (SYSTEM,)), Turn("user", (self.question, *document)))
        return EncodedRow(asked, self.family.encode_turns(asked), self.continuations)
