"""Says what vLLM is asked for a Request: one request of its own, or several where continuations are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.model.engines.vllm.continuation_scores import TokenQuestion, plan_questions
from pipeline.model.families.base import Family
from pipeline.types import Request


class EngineRequest(NamedTuple):
    id: str
    params: Any  # vLLM's SamplingParams or PoolingParams
    question: TokenQuestion | None = None  # whose beginning follows the prompt

    @property
    def added_tokens(self) -> Sequence[int]:
        return self.question.beginning if self.question else ()


def plan_engine_requests(request: Request, family: Family) -> list[EngineRequest]:
    import vllm

    if request.pooling:
        return [EngineRequest(f"0 {request.id}", vllm.PoolingParams(task="embed", use_activation=False))]
    if not request.continuations:
        return [EngineRequest(f"0 {request.id}", build_sampling_params(request, family))]
    return [
        EngineRequest(f"{number} {request.id}", build_question_params(question), question)
        for number, question in enumerate(plan_questions(request.continuations))
    ]


def build_sampling_params(request: Request, family: Family) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    sampling = request.sampling
    thinking_budget = sampling.max_thinking_tokens if family.thinking else None
    return SamplingParams(
        max_tokens=sampling.max_new_tokens + (thinking_budget or 0),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        thinking_token_budget=thinking_budget,
        structured_outputs=StructuredOutputsParams(json=request.schema_text) if request.schema_text else None,
    )


def build_question_params(question: TokenQuestion) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(question.parts),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
