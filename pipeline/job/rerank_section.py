"""The keys of `answer.rerank`: the answer says how well a row fits a query."""

from __future__ import annotations

from pydantic import field_validator

from pipeline.job.key_types import JobSection, define_key


class RerankSection(JobSection):
    query: str = define_key("what is searched for, in words")
    instruction: str | None = define_key(
        "what fits a query; default: Given a search query, retrieve relevant candidates that answer the query.", None
    )

    @field_validator("query")
    @classmethod
    def check_query_is_not_blank(cls, query: str) -> str:
        if not query.strip():
            raise ValueError("is empty; say what is searched for")
        return query
