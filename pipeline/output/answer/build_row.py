"""Item, Request, Reply -> Row: what the model said, parsed, checked, typed, and in the original's coordinates.

An AnswerError says why there is no row, and keeps what the model said. Where repair or geometry changed the answer,
`raw` holds the model's own JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import AnswerError
from pipeline.json_values import parse_answer
from pipeline.output.answer.geometry import map_to_source
from pipeline.schema import validate
from pipeline.schema.schema import Schema
from pipeline.types import Clip, CoordinateSystem, Item, MediaInfo, Reply, Request, Row, TimeOrigin


def build_row(
    item: Item,
    request: Request,
    reply: Reply,
    *,
    schema: Schema | None,
    coordinate_system: CoordinateSystem,
    time_origin: TimeOrigin = "clip",
    attempts: int = 1,
) -> Row:
    """The row of one answered item; AnswerError where the answer cannot be used."""
    answered = _build_answer(request, reply, schema, coordinate_system, time_origin) if schema else {}
    return Row(
        id=item.id,
        question=item.question,
        kept_values=item.kept_values,
        text=reply.text,
        answer=answered.get("answer"),
        finish=reply.finish,
        media=tuple(_to_media_info(clip) for clip in request.clips),
        vision_tokens=request.vision_tokens,
        prompt_tokens=reply.prompt_tokens or len(request.input_ids),
        output_tokens=reply.output_tokens,
        attempts=attempts,
        thinking=reply.thinking,
        logprob=reply.logprob,
        latency_s=reply.latency_s,
        raw=answered.get("raw"),
        flags=(*reply.flags, *answered.get("flags", ())),
        violations=answered.get("violations", ()),
    )


def _build_answer(
    request: Request, reply: Reply, schema: Schema, coordinate_system: CoordinateSystem, time_origin: TimeOrigin
) -> Mapping[str, Any]:
    try:
        said, repaired = parse_answer(reply.text)
        value, wrapped = _wrap_bare_list(said, schema.json_schema)
        plain, violations = validate.check_answer(value, schema)
        mapped, flags = map_to_source(
            plain, schema.json_schema, coordinate_system=coordinate_system, clips=request.clips, time_origin=time_origin
        )
        if mapped is None and plain is not None:
            raise AnswerError("no_place", "the answer has no area in the picture, or speaks of one that was not shown")
        typed = validate.to_typed_answer(mapped, schema)
    except RecursionError as error:
        raise AnswerError("invalid_answer", "the answer is nested too deeply", text=reply.text) from error
    except AnswerError as error:
        if error.kind == "not_json" and reply.finish == "length":
            budget = request.sampling.max_new_tokens
            raise AnswerError(
                "cut_off", f"the budget of {budget} tokens ended before the answer did", text=reply.text
            ) from error
        raise AnswerError(error.kind, error.message, text=reply.text) from error
    changed = flags or repaired or wrapped or mapped != plain
    if repaired or wrapped:
        flags = ("repaired", *flags)
    raw = json.dumps(said, ensure_ascii=False, separators=(",", ":")) if changed else None
    return {"answer": typed, "raw": raw, "flags": flags, "violations": violations}


def _wrap_bare_list(value: Any, schema: Mapping[str, Any]) -> tuple[Any, bool]:
    """A bare list, as Qwen likes to answer, where the schema is an object around one list."""
    properties = schema.get("properties", {})
    if isinstance(value, list) and len(properties) == 1:
        return {next(iter(properties)): value}, True
    return value, False


def _to_media_info(clip: Clip) -> MediaInfo:
    (width, height), (model_width, model_height) = clip.source_size, clip.size
    return MediaInfo(clip.kind, clip.uri, width, height, model_width, model_height, len(clip.pixels), clip.times)
