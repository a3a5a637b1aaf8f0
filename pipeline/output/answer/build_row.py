"""Builds a Row from a Reply and the answer that is read from it."""

from __future__ import annotations

from pipeline.output.answer.base import AnswerReader
from pipeline.output.answer.confidence_maps import find_least_confidence
from pipeline.types import Clip, ConfidenceMaps, Item, MediaInfo, Reply, Request, Row


def build_row(
    item: Item,
    request: Request,
    reply: Reply,
    read_answer: AnswerReader,
    *,
    review_below: float | None = None,
    confidence_maps: ConfidenceMaps | None = None,
    attempts: int = 1,
) -> Row:
    """Raise an AnswerError if the reply holds no answer."""
    tokens = request.count_tokens(reply)
    fields = read_answer(request, reply)
    truncated = ["truncated"] if any(clip.is_truncated for clip in request.row_clips) else []
    flags = (*truncated, *reply.flags, *fields.flags)
    if review_below is not None and find_least_confidence(fields.confidence, confidence_maps or {}) < review_below:
        flags = (*flags, "review")
    return Row(
        id=item.id,
        question=item.question,
        kept_values=item.kept_values,
        text=fields.text,
        answer=fields.answer,
        finish=reply.finish,
        media=tuple(_to_media_info(clip) for clip in request.row_clips),
        vision_tokens=tokens.vision,
        prompt_tokens=tokens.prompt,
        output_tokens=tokens.output,
        attempts=attempts,
        thinking=reply.thinking,
        logprob=reply.logprob,
        confidence=fields.confidence,
        probabilities=fields.probabilities,
        embedding=fields.embedding,
        latency_s=reply.latency_s,
        raw=fields.raw,
        flags=flags,
        violations=fields.violations,
    )


def _to_media_info(clip: Clip) -> MediaInfo:
    (width, height), (model_width, model_height) = clip.source_size, clip.size
    return MediaInfo(clip.kind, clip.uri, width, height, model_width, model_height, len(clip.pixels), clip.times)
