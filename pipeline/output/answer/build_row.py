"""Builds a Row from a Reply: the answer is parsed, checked, typed and mapped to the original media.

An AnswerError says why there is no row, and keeps the model's text. If repair or geometry changed the answer, `raw`
holds the model's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import AnswerError
from pipeline.job.answer_section import AnswerSection
from pipeline.job.embedding_section import EmbeddingSection
from pipeline.json_values import parse_answer
from pipeline.output.answer.choice_answer import build_choice_answer
from pipeline.output.answer.confidence import compute_confidence
from pipeline.output.answer.confidence_maps import find_least_confidence
from pipeline.output.answer.embedding_answer import build_embedding
from pipeline.output.answer.geometry import map_to_source
from pipeline.output.answer.rerank_answer import build_rerank_answer
from pipeline.schema import validate
from pipeline.schema.schema import Schema
from pipeline.types import Clip, ConfidenceMaps, CoordinateSystem, Item, MediaInfo, Reply, Request, Row, TimeOrigin


def build_row(
    item: Item,
    request: Request,
    reply: Reply,
    *,
    schema: Schema | None,
    coordinate_system: CoordinateSystem | None,
    time_origin: TimeOrigin = "clip",
    review_below: float | None = None,
    confidence_maps: ConfidenceMaps | None = None,
    attempts: int = 1,
    choices: AnswerSection | None = None,
    is_reranked: bool = False,
    embedding: EmbeddingSection | None = None,
    vector_width: int = 0,
) -> Row:
    tokens = request.count_tokens(reply)
    answer_fields: Mapping[str, Any] = {}
    if choices:
        answer_fields = build_choice_answer(reply.continuation_logprobs, choices)
    elif is_reranked:
        answer_fields = build_rerank_answer(reply.continuation_logprobs)
    elif schema:
        answer_fields = _build_answer(request, reply, schema, coordinate_system, time_origin)
    flags = (*reply.flags, *answer_fields.get("flags", ()))
    confidence = answer_fields.get("confidence")
    if review_below is not None and find_least_confidence(confidence, confidence_maps or {}) < review_below:
        flags = (*flags, "review")
    return Row(
        id=item.id,
        question=item.question,
        kept_values=item.kept_values,
        text=answer_fields.get("text", reply.text),
        answer=answer_fields.get("answer"),
        finish=reply.finish,
        media=tuple(_to_media_info(clip) for clip in request.row_clips),
        vision_tokens=tokens.vision,
        prompt_tokens=tokens.prompt,
        output_tokens=tokens.output,
        attempts=attempts,
        thinking=reply.thinking,
        logprob=reply.logprob,
        confidence=confidence,
        probabilities=answer_fields.get("probabilities"),
        embedding=build_embedding(reply.vector, embedding, vector_width) if embedding else None,
        latency_s=reply.latency_s,
        raw=answer_fields.get("raw"),
        flags=flags,
        violations=answer_fields.get("violations", ()),
    )


def _build_answer(
    request: Request,
    reply: Reply,
    schema: Schema,
    coordinate_system: CoordinateSystem | None,
    time_origin: TimeOrigin,
) -> Mapping[str, Any]:
    dropped: list[Any] = []
    try:
        parsed, was_repaired = parse_answer(reply.text)
        value, was_wrapped = _wrap_bare_list(parsed, schema.json_schema)
        checked, violations = validate.check_answer(value, schema)
        mapped, flags = map_to_source(
            checked,
            schema.json_schema,
            coordinate_system=coordinate_system,
            clips=request.row_clips,
            time_origin=time_origin,
            dropped=dropped,
        )
        if mapped is None and checked is not None:
            raise AnswerError("no_place", "the answer has no area in the picture, or speaks of one that was not shown")
        typed = validate.to_typed_answer(mapped, schema)
    except RecursionError as error:
        raise AnswerError("invalid_answer", "the answer is nested too deeply", text=reply.text) from error
    except AnswerError as error:
        if error.kind == "not_json" and reply.finish == "length":
            message = f"the budget of {request.sampling.max_new_tokens} tokens ended before the answer did"
            raise AnswerError("cut_off", message, text=reply.text) from error
        raise AnswerError(error.kind, error.message, text=reply.text) from error
    if was_repaired or was_wrapped:
        flags = ("repaired", *flags)
    is_changed = flags or mapped != checked
    confidence = None
    if reply.token_logprobs:
        confidence = compute_confidence(
            value, checked, text=reply.text, tokens=reply.token_logprobs, schema=schema, dropped=dropped
        )
    raw = json.dumps(parsed, ensure_ascii=False, separators=(",", ":")) if is_changed else None
    return {"answer": typed, "confidence": confidence, "raw": raw, "flags": flags, "violations": violations}


def _wrap_bare_list(value: Any, schema: Mapping[str, Any]) -> tuple[Any, bool]:
    """Wrap a bare list if the schema is an object with one field: Qwen often answers like that."""
    properties = schema.get("properties", {})
    if isinstance(value, list) and len(properties) == 1:
        return {next(iter(properties)): value}, True
    return value, False


def _to_media_info(clip: Clip) -> MediaInfo:
    (width, height), (model_width, model_height) = clip.source_size, clip.size
    return MediaInfo(clip.kind, clip.uri, width, height, model_width, model_height, len(clip.pixels), clip.times)
