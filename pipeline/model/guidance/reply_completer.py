"""Makes of a reply by another program what our own engine would have replied: its grammar is followed once more.

Our own engine never lets the budget end before the answer does; HTTP servers and vLLM do. Their text is parsed again
by the same grammar up to the last token after which an ending still fits, and the ending replaces the rest, as our
engine would have forced it. A text that does not follow the grammar stays as it is, and is asked again or fails.

Tokens that the grammar forced lose their log-probability, because nothing was chosen there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from pipeline.errors import GenerateError
from pipeline.types import Reply, Request

if TYPE_CHECKING:
    from pipeline.model.guidance.grammar import GrammarCompiler

STRING_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*"?)|\s+', re.DOTALL)
UNFINISHED_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$")
MAX_ENDING_TOKENS = 4096  # where the budget was counted by another tokenizer


class ReplyCompleter:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.compiler: GrammarCompiler | None = None

    def complete_reply(
        self,
        reply: Reply,
        request: Request,
        answer_tokens: Sequence[int] | None = None,
        *,
        was_guided: bool = True,  # while the answer was written; False: the model could have left the grammar
    ) -> Reply:
        """`answer_tokens`, where known, make the ending keep to the budget.

        An empty reply (the budget went into thinking) stays empty: completing it would invent an answer.
        """
        if was_guided:
            reply = self.mark_forced_tokens(reply, request)
        if reply.finish != "length" or request.schema_text is None or not reply.text.strip():
            return reply
        try:
            text = self.complete_text(reply.text, request.schema_text, request.sampling.max_new_tokens, answer_tokens)
        except GenerateError:
            return reply
        return replace(reply, text=text)

    def get_compiler(self) -> GrammarCompiler:
        from pipeline.model.guidance.grammar import GrammarCompiler

        if self.compiler is None:
            vocab_size = self.tokenizer.get_vocab_size()
            self.compiler = GrammarCompiler(self.tokenizer, vocab_size=vocab_size, stop_tokens=[0])
        return self.compiler

    def mark_forced_tokens(self, reply: Reply, request: Request) -> Reply:
        if request.schema_text is None or not reply.token_logprobs:
            return reply
        from pipeline.model.guidance.forced_tokens import find_forced_tokens

        try:
            matcher = self.get_compiler().compile_schema(request.schema_text).byte_matcher.deep_copy()
        except GenerateError:
            return reply
        tokens = reply.token_logprobs
        forced = find_forced_tokens(reply.text, [token.end for token in tokens], matcher)
        marked = [
            token._replace(logprob=None) if is_forced else token
            for token, is_forced in zip(tokens, forced, strict=True)
        ]
        chosen = [token.logprob for token in marked if token.logprob is not None]
        return replace(reply, token_logprobs=tuple(marked), logprob=fmean(chosen) if chosen else None)

    def complete_text(self, text: str, schema: str, budget: int, tokens: Sequence[int] | None) -> str:
        if tokens is None:
            tokens = self.tokenizer.encode(compact_json(text), add_special_tokens=False).ids
            budget = len(tokens) + MAX_ENDING_TOKENS
        matcher = self.get_compiler().create_matcher(schema, budget=budget)
        kept_tokens: list[int] = []
        for token in tokens:
            if matcher.is_done or matcher.is_truncated or not matcher.accept_token(token):
                break
            kept_tokens.append(token)
        matcher.truncate()
        return str(self.tokenizer.decode(kept_tokens + matcher.get_forced_tokens(), skip_special_tokens=False))


def compact_json(text: str) -> str:
    """Remove white space between JSON tokens, and a character that was cut in half at the end.

    >>> compact_json('{"a b": [1,\\n "x y'), compact_json('["caf\\\\u00e')
    ('{"a b":[1,"x y', '["caf')
    """
    return UNFINISHED_ESCAPE.sub(r"\1", STRING_OR_SPACE.sub(lambda match: match[1] or "", text).rstrip("\ufffd"))
