"""Builds the pieces of a prompt, in order, from turns and a checkpoint's chat template.

The text of a row stays a `str` and the structure of the prompt is made of `SpecialToken`, so no text can close a turn
or open an image. The template is rendered on two probes, a question and a chat, to learn what it puts around turns; a
template of another format is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NoReturn

from pipeline.errors import JobError
from pipeline.types import Clip, MediaRef, Turn

QUESTION, ANSWER, THOUGHT = "What is this?", "A cat.", "Hm."
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
THOUGHTFUL_ANSWER = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
SYSTEM_TURN = r"(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\n)?"
RENDERED_QUESTION = re.compile(
    rf"{SYSTEM_TURN}<\|im_start\|>user\n{re.escape(QUESTION)}<\|im_end\|>\n<\|im_start\|>assistant\n(?P<opening>.*)",
    re.DOTALL,
)
USER_TURN = rf"<\|im_start\|>user\n ?{re.escape(QUESTION)} ?<\|im_end\|>\n<\|im_start\|>assistant\n"
RENDERED_CHAT = re.compile(
    rf"{SYSTEM_TURN}{USER_TURN}(?P<thoughtful>.*?)<\|im_end\|>\n"
    rf"{USER_TURN}(?P<prefix>.*?){re.escape(ANSWER)}<\|im_end\|>\n{USER_TURN}.*",
    re.DOTALL,
)
GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")  # a tag that only transformers knows


class SpecialToken(Enum):
    """The tokens that begin and end a turn."""

    START = "<|im_start|>"
    END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The text that a checkpoint's chat template adds to the turns, and what it removes from them."""

    default_system: str | None = None  # the system turn of a conversation without one
    answer_prefix: str = ""  # how every answer begins: `<think>\n` for a model that thinks
    earlier_answer_prefix: str = ""  # before the earlier answers of a chat
    trims_text: bool = False  # white space at both ends of a turn is removed
    drops_thoughts: bool = False  # earlier answers are shown without their thinking

    @property
    def thinking(self) -> bool:
        return self.answer_prefix.startswith("<think>") and "</think>" not in self.answer_prefix


def parse_chat_template(template: str, *, thinking: bool | None = None, closes_thinking: bool = False) -> ChatFormat:
    """What a chat template puts around a conversation. `thinking` is its `enable_thinking`; None is its default.

    With `closes_thinking` an answer that always begins with a thought begins behind an empty one.

    >>> turn = "<|im_start|>{{ m.role }}\\n{{ m.content[0].text }}<|im_end|>\\n"
    >>> opening = "<|im_start|>assistant\\n<think>\\n\\n"
    >>> parse_chat_template("{% for m in messages %}" + turn + "{% endfor %}" + opening).answer_prefix
    '<think>\\n'
    """
    options = {} if thinking is None else {"enable_thinking": thinking}
    question = _match_turns(RENDERED_QUESTION, template, ("user", QUESTION), **options)
    turns = [("user", QUESTION), ("assistant", THOUGHTFUL_ANSWER), ("user", QUESTION), ("assistant", ANSWER)]
    chat = _match_turns(RENDERED_CHAT, template, *turns, ("user", f" {QUESTION} "), **options)
    chat_format = ChatFormat(
        default_system=question["system"],
        answer_prefix=question["opening"],
        earlier_answer_prefix=chat["prefix"],
        trims_text=f" {QUESTION} " not in chat[0],
        drops_thoughts=THOUGHT not in chat["thoughtful"],
    )
    if closes_thinking and chat_format.thinking:
        return replace(chat_format, answer_prefix=EMPTY_THOUGHT)
    if thinking is False and chat_format.thinking:
        raise JobError("answer.thinking: this checkpoint always thinks; give {max_tokens: ...} in place of false")
    return chat_format


def _match_turns(pattern: re.Pattern[str], template: str, *turns: tuple[str, str], **options: bool) -> re.Match[str]:
    """The turns as the template renders them; JobError where that is not the format of the Qwen-VL line."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_template_error
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    try:
        plain_template = environment.from_string(GENERATION_TAG.sub(_replace_generation_tag, template))
        text = plain_template.render(messages=messages, add_generation_prompt=True, **options)
    except TemplateError as error:
        raise JobError(f"the checkpoint's chat template cannot be rendered: {error}") from error
    match = pattern.fullmatch(text)
    if not match:
        raise JobError(
            f"the checkpoint's chat template is not of the Qwen-VL kind: it renders {QUESTION!r} as {text!r}"
        )
    return match


def _raise_template_error(message: str) -> NoReturn:
    """What templates call to refuse a conversation or an option."""
    from jinja2 import TemplateError

    raise TemplateError(message)


def _replace_generation_tag(tag: re.Match[str]) -> str:
    """The tag marks the model's own words for training; their content is always rendered."""
    return f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}"


def build_prompt_pieces(
    turns: Sequence[Turn], chat_format: ChatFormat, *, add_vision_id: bool
) -> Iterator[str | SpecialToken | Clip]:
    """The prompt up to the answer. `add_vision_id` numbers the media: 'Picture 1: '."""
    counts = {"image": 0, "video": 0}
    if chat_format.default_system is not None and (not turns or turns[0].role != "system"):
        turns = [Turn("system", (chat_format.default_system,)), *turns]
    for turn in turns:
        yield SpecialToken.START
        yield f"{turn.role}\n"
        is_answer = turn.role == "assistant"
        if is_answer and chat_format.earlier_answer_prefix:
            yield chat_format.earlier_answer_prefix
        for part in trim_parts(turn.parts) if chat_format.trims_text else turn.parts:
            if isinstance(part, MediaRef):
                raise TypeError("a prompt is built of Clips; this MediaRef was never loaded")
            if add_vision_id and isinstance(part, Clip):
                counts[part.kind] += 1
                yield f"{'Picture' if part.kind == 'image' else 'Video'} {counts[part.kind]}: "
            drops_thoughts = is_answer and chat_format.drops_thoughts
            yield remove_thinking(part) if drops_thoughts and isinstance(part, str) else part
        yield SpecialToken.END
        yield "\n"
    yield SpecialToken.START
    yield f"assistant\n{chat_format.answer_prefix}"


def trim_parts(parts: Sequence[str | MediaRef | Clip]) -> list[str | MediaRef | Clip]:
    """The parts without white space at both ends.

    >>> trim_parts([" ", " What is", " it? ", "\\n"])
    ['What is', ' it?']
    """
    trimmed = list(parts)
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while trimmed and isinstance(text := trimmed[end], str):
            if stripped := strip(text):
                trimmed[end] = stripped
                break
            del trimmed[end]
    return trimmed


def remove_thinking(text: str) -> str:
    """An earlier answer without its thoughts, which Thinking models never see again."""
    _, end, answer = text.rpartition("</think>")
    return answer.lstrip("\n") if end else text
