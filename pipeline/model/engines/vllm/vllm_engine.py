"""Requests -> replies through vLLM's engine inside the replica: its scheduler and kernels, our prompt and our pixels.

Schemas are held by llguidance, without white space, as in our own engine; where the budget ends first, the answer is
ended as ours would be. An engine that is dead, or does not start, ends the process: what runs it starts it anew, and
the rows are asked again.

It costs what vLLM costs: tens of seconds to start, its own pins of torch and transformers, torchvision.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from threading import Event, Thread
from typing import Any, NoReturn

from pipeline.errors import ExitCode, GenerateError, ItemError, JobError
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engines.http.responses import MAX_MESSAGE_LENGTH, TOO_LONG_MESSAGE
from pipeline.model.engines.vllm.prompt_inputs import build_prompt, check_prompt_tokens
from pipeline.model.families.base import Family
from pipeline.model.guidance.reply_completer import ReplyCompleter
from pipeline.types import Failure, Reply, Request
from pipeline.watchdog import Watchdog

REQUESTS_PER_SLOT = 2  # rows handed over for each that can be decoded at once, so that vLLM never waits for one
HANG_S, LIVENESS_CHECK_S = 1800.0, 1.0


class VllmEngine:
    def __init__(self, family: Family, **arguments: Any):
        """`arguments` are those of vLLM's EngineArgs."""
        import vllm
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self.engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
        except (ValueError, TypeError) as error:
            raise JobError(f"engine: vLLM refuses its arguments: {error}") from error
        except RuntimeError as error:
            exit_process(f"vLLM does not start, most often for want of memory: {error}")
        self.vllm, self.dead_error, self.refusal_errors = vllm, EngineDeadError, (ValueError, VLLMClientError)
        self.slots: int = self.engine.vllm_config.scheduler_config.max_num_seqs
        self.family = family
        self.detokenizer = Detokenizer.from_tokenizer(family.tokenizer, (), thinking=family.thinking)
        self.reply_completer = ReplyCompleter(family.tokenizer)
        self.in_flight: dict[str, Request] = {}
        self.refused_failures: list[Failure] = []
        self.counts = {"rows": 0, "prompt_tokens": 0, "output_tokens": 0}
        self.watchdog = Watchdog(HANG_S)
        self.closed = Event()
        if hasattr(self.engine.engine_core, "ensure_alive"):  # it has a process of its own
            Thread(target=self.watch_liveness, name="guard", daemon=True).start()

    def has_room(self) -> bool:
        return len(self.in_flight) < REQUESTS_PER_SLOT * self.slots

    def submit(self, request: Request) -> None:
        try:
            self.engine.add_request(request.id, build_prompt(request, self.family), self.build_sampling_params(request))
            self.in_flight[request.id] = request
        except self.refusal_errors as error:
            said = str(error)[:MAX_MESSAGE_LENGTH]  # it may hold every pixel
            kind = "too_long" if TOO_LONG_MESSAGE.search(said) else "refused"
            self.refused_failures.append(GenerateError(kind, f"vLLM does not take it: {said}").to_failure(request.id))
        except self.dead_error as error:
            exit_process(f"vLLM's engine is dead: {error}")

    def step(self) -> list[Reply | Failure]:
        refused, self.refused_failures = self.refused_failures, []
        if refused or not self.in_flight:
            return [*refused]
        try:
            with self.watchdog:
                outputs = self.engine.step()
        except self.dead_error as error:
            exit_process(f"vLLM's engine is dead: {error}")
        return [self.parse_output(output) for output in outputs if output.finished]

    def watch_liveness(self) -> None:
        """vLLM's step waits for ever for an engine that was killed, as the kernel does where memory ends."""
        while not self.closed.wait(LIVENESS_CHECK_S):
            try:
                self.engine.engine_core.ensure_alive()
            except self.dead_error as error:
                if not self.closed.is_set():
                    exit_process(f"vLLM's engine is dead: {error}")

    def build_sampling_params(self, request: Request) -> Any:
        how, thinking = request.sampling, request.sampling.max_thinking_tokens if self.family.thinking else None
        guide = (
            self.vllm.sampling_params.StructuredOutputsParams(json=request.schema_text) if request.schema_text else None
        )
        return self.vllm.SamplingParams(
            max_tokens=how.max_new_tokens + (thinking or 0),
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            seed=how.seed,
            logprobs=0,
            detokenize=False,
            thinking_token_budget=thinking,
            structured_outputs=guide,
        )

    def parse_output(self, output: Any) -> Reply | Failure:
        request, said = self.in_flight.pop(output.request_id), output.outputs[0]
        self.counts["rows"] += 1
        self.counts["prompt_tokens"] += len(output.prompt_token_ids)
        self.counts["output_tokens"] += len(said.token_ids)
        try:
            check_prompt_tokens(request, output.prompt_token_ids, self.family)
            if said.finish_reason not in ("stop", "length"):
                raise GenerateError("engine", f"vLLM ended the row with {said.finish_reason!r}")
            return self.build_reply(request, said)
        except ItemError as error:
            return error.to_failure(request.id)

    def build_reply(self, request: Request, completion: Any) -> Reply:
        thought, spoken = self.split_thinking(list(completion.token_ids))
        text, count = self.detokenizer.decode(spoken), len(completion.token_ids)
        reply = Reply(
            id=request.id,
            text=text if thought is None else text.lstrip(),
            finish=completion.finish_reason,
            output_tokens=count,
            thinking=None if thought is None else self.detokenizer.decode(thought).strip(),
            logprob=completion.cumulative_logprob / count
            if completion.cumulative_logprob is not None and count
            else None,
        )
        return self.reply_completer.complete_reply(reply, request, spoken)

    def split_thinking(self, tokens: list[int]) -> tuple[list[int] | None, list[int]]:
        """What was thought, and what was answered."""
        end = self.detokenizer.think_end_token
        if end is None:
            return None, tokens
        cut = tokens.index(end) if end in tokens else len(tokens)
        return tokens[:cut], tokens[cut + 1 :]

    def metrics(self) -> Mapping[str, float]:
        busy = min(len(self.in_flight), self.slots)
        return {**self.counts, "busy": busy, "slots": self.slots, "waiting": len(self.in_flight) - busy}

    def close(self) -> None:
        self.watchdog.close()
        self.closed.set()
        self.engine.engine_core.shutdown()


def exit_process(reason: str) -> NoReturn:
    """As a crash, which is what it is: raised, it would be taken for the fault of the rows."""
    os.write(2, f"vlbatch: {reason}\n".encode())
    sys.stderr.flush()
    os._exit(ExitCode.HANG)
