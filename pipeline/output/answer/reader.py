"""Chooses how the answers of a job are read from replies: one reader for each kind of answer."""

from __future__ import annotations

from functools import partial

from pipeline.context import RunContext
from pipeline.output.answer.base import AnswerFields, AnswerReader
from pipeline.output.answer.choice_answer import read_choice_answer
from pipeline.output.answer.embedding_answer import read_embedding
from pipeline.output.answer.json_answer import read_json_answer
from pipeline.output.answer.rerank_answer import read_rerank_answer
from pipeline.types import CoordinateSystem, Reply, Request, TimeOrigin


def choose_reader(
    context: RunContext, coordinate_system: CoordinateSystem | None, time_origin: TimeOrigin
) -> AnswerReader:
    answer, schema, width = context.job.answer, context.schema, context.vector_width
    if answer.choices:
        return lambda _, reply: read_choice_answer(reply.continuation_logprobs, answer)
    if answer.rerank:
        return lambda _, reply: read_rerank_answer(reply.continuation_logprobs)
    if embedding := answer.embedding:
        return lambda _, reply: AnswerFields(reply.text, embedding=read_embedding(reply.vector, embedding, width))
    if schema:
        return partial(read_json_answer, schema=schema, coordinate_system=coordinate_system, time_origin=time_origin)
    return read_text


def read_text(request: Request, reply: Reply) -> AnswerFields:
    return AnswerFields(reply.text)
