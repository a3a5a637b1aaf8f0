"""A reply that was cut off -> the same with the shortest ending that fits its schema.

Our own engine never lets the budget end before the answer does; servers and other engines cut. What they wrote is
read again by the same grammar, as far as an ending still fits the budget, and the ending is written in their place.
Free of any model, and the same words that our engine would have forced. What does not follow the grammar stays
as it is: it is then asked again, or an error row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from pipeline.errors import GenerateError
from pipeline.types import Reply, Request

STRING_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*"?)|\s+', re.DOTALL)
UNFINISHED = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$")  # an escape
ROOM = 4096  # tokens for an ending where the budget was another tokenizer's


class Endings:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.grammars: object = None

    def ended(self, reply: Reply, request: Request, tokens: Sequence[int] | None = None) -> Reply:
        """`tokens`: those of the answer, where they are known; then the ending keeps to the budget.

        Where nothing was said (a budget spent on thinking), an ending would be an answer of our own making.
        """
        if reply.finish != "length" or request.schema is None or not reply.text.strip():
            return reply
        try:
            text = self.text(reply.text, request.schema, request.sampling.max_new_tokens, tokens)
        except GenerateError:
            return reply
        return replace(reply, text=text)

    def text(self, said: str, schema: str, budget: int, tokens: Sequence[int] | None) -> str:
        from pipeline.model.guidance.grammar import Grammars

        if not isinstance(self.grammars, Grammars):
            size = self.tokenizer.get_vocab_size()
            self.grammars = Grammars(self.tokenizer, vocab_size=size, stop=[0])
        if tokens is None:
            tokens = self.tokenizer.encode(compact(said), add_special_tokens=False).ids
            budget = len(tokens) + ROOM
        matcher = self.grammars.matcher(schema, budget=budget)
        kept: list[int] = []
        for token in tokens:
            if matcher.done or matcher.cut or not matcher.accept(token):
                break
            kept.append(token)
        matcher.end()
        return str(self.tokenizer.decode(kept + matcher.forced(), skip_special_tokens=False))


def compact(text: str) -> str:
    """Without the white space between JSON's pieces, and without a character that was cut in half.

    >>> compact('{"a b": [1,\\n "x y'), compact('["caf\\\\u00e')
    ('{"a b":[1,"x y', '["caf')
    """
    return UNFINISHED.sub(r"\1", STRING_OR_SPACE.sub(lambda match: match[1] or "", text).rstrip("\ufffd"))
