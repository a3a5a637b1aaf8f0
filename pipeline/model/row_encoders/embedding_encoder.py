"""Turns a row into what its vector is made of: a prompt for the language model, or its media alone.

The prompt is that of Qwen3-VL-Embedding: the instruction is the system message, the row is what the user says, and the
state of the last token before the answer is the vector. What the checkpoint's tokenizer ends every text with follows.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.errors import PromptError
from pipeline.job.embedding_section import EmbeddingSection
from pipeline.model.families.base import EncodedPrompt, Family
from pipeline.model.row_encoders.base import EncodedRow
from pipeline.types import Clip, Pooling, Turn

DEFAULT_INSTRUCTION = "Represent the user's input."


class EmbeddingEncoder:
    def __init__(self, family: Family, embedding: EmbeddingSection):
        self.family = family
        self.pooling = Pooling(embedding.source, embedding.pooling)
        self.instruction = end_with_punctuation(embedding.instruction or DEFAULT_INSTRUCTION)
        tokenizer_ending = family.tokenizer.encode("", add_special_tokens=True).ids if family.knows_model else []
        self.ending = np.asarray(tokenizer_ending, np.int32)

    def encode_turns(self, turns: tuple[Turn, ...]) -> EncodedRow:
        if self.pooling.source == "vision":
            return EncodedRow(turns, self.encode_media(turns), pooling=self.pooling)
        if not turns or turns[0].role != "system":
            turns = (Turn("system", (self.instruction,)), *turns)
        return EncodedRow(turns, self.append_ending(self.family.encode_turns(turns)), pooling=self.pooling)

    def append_ending(self, encoded: EncodedPrompt) -> EncodedPrompt:
        if not len(self.ending):
            return encoded
        positions = encoded.positions.max() + 1 + np.arange(len(self.ending), dtype=np.int32)
        ending_positions = np.broadcast_to(positions, (len(encoded.positions), len(positions)))
        return replace(
            encoded,
            input_ids=np.concatenate([encoded.input_ids, self.ending]),
            positions=np.concatenate([encoded.positions, ending_positions], axis=1),
        )

    def encode_media(self, turns: Sequence[Turn]) -> EncodedPrompt:
        """No text, and a pad token for each vision token."""
        clips = [part for turn in turns for part in turn.parts if isinstance(part, Clip)]
        if not clips:
            raise PromptError("no_media", "answer.embedding looks at media alone (from: vision), and this row has none")
        count = sum(self.family.count_vision_tokens(clip.size, len(clip.pixels)) for clip in clips)
        return EncodedPrompt(np.zeros(count, np.int32), np.zeros((3, count), np.int32), count)


def end_with_punctuation(text: str) -> str:
    """
    >>> end_with_punctuation("Find the same product "), end_with_punctuation("Find it!")
    ('Find the same product.', 'Find it!')
    """
    text = text.strip()
    return text if unicodedata.category(text[-1]).startswith("P") else f"{text}."
