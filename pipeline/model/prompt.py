"""Turns, a checkpoint's chat template -> the pieces of a prompt, in order.

What a row says is only ever a `str` here and what structures the prompt is only ever a `Mark`, so no
text can close a turn or open a picture. The template itself is rendered once, on a probe, to learn
what it puts around our turns; one that speaks another format is refused instead of half obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from pipeline.errors import JobError
from pipeline.types import Clip, MediaRef, Turn

PROBE_TEXT = "What is this?"
RENDERED_PROBE = re.compile(
    rf"(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\n)?"
    rf"<\|im_start\|>user\n{re.escape(PROBE_TEXT)}<\|im_end\|>\n<\|im_start\|>assistant\n(?P<opening>.*)",
    re.DOTALL,
)
GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")  # a tag of transformers' own


class SpecialToken(Enum):
    """The tokens that give a prompt its structure."""

    START = "<|im_start|>"
    END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a checkpoint's template adds to the turns."""

    default_system: str | None = None  # said where a conversation has no system turn
    answer_prefix: str = ""  # the first words of every answer: `<think>\n` of a Thinking checkpoint

    @property
    def thinking(self) -> bool:
        return self.answer_prefix.startswith("<think>")


def parse_chat_template(template: str) -> ChatFormat:
    """What a chat template puts around a conversation.

    >>> read_style("{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content[0].text }}<|im_end|>\\n{% endfor %}"
    ...       "<|im_start|>assistant\\n<think>\\n\\n")
    Style(system=None, opening='<think>\\n')
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    probe = [{"role": "user", "content": [{"type": "text", "text": PROBE_TEXT}]}]
    try:
        room = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        text = room.from_string(GENERATION_TAG.sub(_replace_generation_tag, template)).render(
            messages=probe, add_generation_prompt=True
        )
    except TemplateError as error:
        raise JobError(f"the checkpoint's chat template cannot be rendered: {error}") from error
    found = RENDERED_PROBE.fullmatch(text)
    if not found:
        raise JobError(
            f"the checkpoint's chat template is not of the Qwen-VL kind; it makes {text!r} of {PROBE_TEXT!r}"
        )
    return ChatFormat(found["system"], found["opening"])


def _replace_generation_tag(tag: re.Match[str]) -> str:
    """What training marks as the model's own words is always said here."""
    return f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}"


def build_prompt_pieces(
    turns: Sequence[Turn], chat_format: ChatFormat, *, add_vision_id: bool
) -> Iterator[str | SpecialToken | Clip]:
    """The prompt, up to where the answer begins. `label` counts the media: 'Picture 1: '."""
    counts = {"image": 0, "video": 0}
    if chat_format.default_system is not None and (not turns or turns[0].role != "system"):
        turns = [Turn("system", (chat_format.default_system,)), *turns]
    for turn in turns:
        yield SpecialToken.START
        yield f"{turn.role}\n"
        for part in strip_thinking(turn) if chat_format.thinking else turn.parts:
            if isinstance(part, MediaRef):
                raise TypeError("a prompt is built of Clips; this Medium was never looked at")
            if add_vision_id and isinstance(part, Clip):
                counts[part.kind] += 1
                yield f"{'Picture' if part.kind == 'image' else 'Video'} {counts[part.kind]}: "
            yield part
        yield SpecialToken.END
        yield "\n"
    yield SpecialToken.START
    yield f"assistant\n{chat_format.answer_prefix}"


def strip_thinking(turn: Turn) -> Sequence[str | MediaRef | Clip]:
    """The parts of a turn without what an earlier answer thought: Thinking models never see that again."""
    if turn.role != "assistant":
        return turn.parts
    return [remove_thinking(part) if isinstance(part, str) else part for part in turn.parts]


def remove_thinking(text: str) -> str:
    _, end, answer = text.rpartition("</think>")
    return answer.lstrip("\n") if end else text
