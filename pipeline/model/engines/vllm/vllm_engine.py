"""Runs vLLM's engine inside the replica: its scheduler and kernels, our prompt and our pixels.

llguidance enforces schemas without white space, as in our own engine, and an answer that the budget cut is completed in
the same way. An engine that dies or does not start ends the process: whatever runs the process starts another one, and
the rows are asked again. vLLM takes tens of seconds to start, and needs its own versions of torch and transformers.

A thread of its own prepares requests (pixels to tensors, mostly) while vLLM steps. It is one thread, and requests go on
in its order, because vLLM's cache of processed media expects both of its sides to see them in the same order.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import ExitCode, GenerateError, ItemError, JobError
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engines.refusals import classify_refusal, shorten_message
from pipeline.model.engines.vllm.chat_inputs import ChatRenderer
from pipeline.model.engines.vllm.prompt_inputs import build_prompt, check_prompt_tokens
from pipeline.model.families.base import Family
from pipeline.model.guidance.reply_completer import ReplyCompleter
from pipeline.types import Failure, Reply, Request, TokenLogprob
from pipeline.watchdog import Watchdog

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REQUESTS_PER_SLOT = 2  # so that vLLM never waits for the next request
HANG_S, LIVENESS_CHECK_S = 1800.0, 1.0


class VllmEngine:
    def __init__(self, family: Family, adapter: Path | None = None, **arguments: Any):
        """`adapter` is a LoRA folder for all rows. `arguments` are those of vLLM's EngineArgs."""
        import vllm
        from vllm.exceptions import VLLMClientError
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self.engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
        except (ValueError, TypeError) as error:
            raise JobError(f"engine: vLLM refuses its arguments: {error}") from error
        except RuntimeError as error:
            exit_process(f"vLLM does not start, most often because memory is short: {error}")
        self.vllm, self.dead_error, self.refusal_errors = vllm, EngineDeadError, (ValueError, VLLMClientError)
        self.engine.get_supported_tasks()  # asks vLLM's process once, while nothing else does
        self.slots: int = self.engine.vllm_config.scheduler_config.max_num_seqs
        self.family = family
        self.lora_request = LoRARequest("adapter", 1, str(adapter)) if adapter else None
        self.chat_renderer, tokenizer = None, family.tokenizer
        if not family.knows_model:
            self.chat_renderer = ChatRenderer(self.engine, family.template_options, add_vision_id=family.add_vision_id)
            tokenizer = get_fast_tokenizer(self.engine)
        self.detokenizer = Detokenizer.from_tokenizer(tokenizer, (), thinking=family.thinking)
        self.reply_completer = ReplyCompleter(tokenizer)
        self.preparing: deque[tuple[Request, Future[Any]]] = deque()  # in the order of submission
        self.preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self.in_flight: dict[str, Request] = {}  # inside vLLM
        self.sent_again: set[str] = set()
        self.counts = dict.fromkeys(("rows", "prompt_tokens", "tokens_copied", "output_tokens"), 0)
        self.watchdog = Watchdog(HANG_S)
        self.closed = Event()
        if hasattr(self.engine.engine_core, "ensure_alive"):  # the engine runs in a process of its own
            Thread(target=self.watch_liveness, name="liveness", daemon=True).start()

    def has_room(self) -> bool:
        return len(self.preparing) + len(self.in_flight) < REQUESTS_PER_SLOT * self.slots

    def submit(self, request: Request) -> None:
        self.preparing.append((request, self.preparer.submit(self.prepare_input, request)))

    def prepare_input(self, request: Request) -> Any:
        """The input of vLLM's engine, which it will accept."""
        if self.chat_renderer:
            engine_input = self.chat_renderer.render(request)
        else:
            (engine_input,) = self.engine.renderer.render_cmpl([build_prompt(request, self.family)])
        try:
            params, tasks = self.build_sampling_params(request), self.engine.get_supported_tasks()
            self.engine.input_processor.process_inputs(request.id, engine_input, params, tasks)
        except self.refusal_errors:
            self.forget_media(engine_input)
            raise
        return engine_input

    def forget_media(self, engine_input: Any) -> None:
        """vLLM believes that its engine has all media that were rendered; a refused request's never get there."""
        cache = self.engine.renderer.mm_processor_cache
        for key in chain.from_iterable(engine_input.get("mm_hashes", {}).values()) if cache else ():
            cache.invalidate(key)

    def step(self) -> list[Reply | Failure]:
        try:
            with self.watchdog:
                refused = self.admit_prepared()
                outputs = self.engine.step() if self.in_flight and not refused else []
        except self.dead_error as error:
            exit_process(f"vLLM's engine is dead: {error}")
        finished = [output for output in outputs if output.finished and not self.send_again(output)]
        return [*refused, *map(self.parse_output, finished)]

    def admit_prepared(self) -> list[Failure]:
        """Pass on what is prepared; wait for the next where vLLM has nothing to do. Returns what vLLM refuses."""
        refused: list[Failure] = []
        while self.preparing and (self.preparing[0][1].done() or not (self.in_flight or refused)):
            request, prepared = self.preparing.popleft()
            try:
                engine_input, params = prepared.result(), self.build_sampling_params(request)
                self.engine.add_request(request.id, engine_input, params, lora_request=self.lora_request)
                self.in_flight[request.id] = request
            except self.refusal_errors as error:
                message = shorten_message(str(error))
                refusal = GenerateError(classify_refusal(message), f"vLLM does not accept the request: {message}")
                refused.append(refusal.to_failure(request.id))
        return refused

    def send_again(self, output: Any) -> bool:
        """Once, where vLLM ends a request with an error: it knows then which media it has to send with it."""
        name = output.request_id
        if output.outputs[0].finish_reason != "error" or name in self.sent_again:
            self.sent_again.discard(name)
            return False
        self.sent_again.add(name)
        self.submit(self.in_flight.pop(name))
        return True

    def watch_liveness(self) -> None:
        """vLLM's step waits forever for an engine that was killed, for example because memory ran out."""
        while not self.closed.wait(LIVENESS_CHECK_S):
            try:
                self.engine.engine_core.ensure_alive()
            except self.dead_error as error:
                if not self.closed.is_set():
                    exit_process(f"vLLM's engine is dead: {error}")

    def build_sampling_params(self, request: Request) -> Any:
        sampling = request.sampling
        thinking_budget = sampling.max_thinking_tokens if self.family.thinking else None
        guide = None
        if request.schema_text:
            guide = self.vllm.sampling_params.StructuredOutputsParams(json=request.schema_text)
        return self.vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens + (thinking_budget or 0),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            logprobs=0,
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            thinking_token_budget=thinking_budget,
            structured_outputs=guide,
        )

    def parse_output(self, output: Any) -> Reply | Failure:
        request, completion = self.in_flight.pop(output.request_id), output.outputs[0]
        self.counts["rows"] += 1
        self.counts["prompt_tokens"] += len(output.prompt_token_ids)
        self.counts["tokens_copied"] += output.num_cached_tokens or 0
        self.counts["output_tokens"] += len(completion.token_ids)
        try:
            if self.family.knows_model:
                check_prompt_tokens(request, output.prompt_token_ids, self.family)
            if completion.finish_reason not in ("stop", "length"):
                raise GenerateError("engine", f"vLLM ended the row with {completion.finish_reason!r}")
            return replace(self.build_reply(request, completion), prompt_tokens=len(output.prompt_token_ids))
        except ItemError as error:
            return error.to_failure(request.id)

    def build_reply(self, request: Request, completion: Any) -> Reply:
        tokens, logprob = list(completion.token_ids), completion.cumulative_logprob
        thinking, text = self.detokenizer.decode_output(tokens)
        _, answer_tokens = self.detokenizer.split_thinking(tokens)
        token_logprobs: tuple[TokenLogprob, ...] = ()
        if request.wants_confidence and completion.logprobs:
            steps = zip(answer_tokens, completion.logprobs[len(tokens) - len(answer_tokens) :], strict=True)
            logprobs = [step[token].logprob for token, step in steps]
            token_logprobs = self.detokenizer.locate_tokens(answer_tokens, logprobs, text)
        reply = Reply(
            id=request.id,
            text=text,
            finish=completion.finish_reason,
            output_tokens=len(tokens),
            thinking=thinking,
            logprob=logprob / len(tokens) if logprob is not None and tokens else None,
            token_logprobs=token_logprobs,
        )
        return self.reply_completer.complete_reply(reply, request, answer_tokens)

    def metrics(self) -> Mapping[str, float]:
        busy = min(len(self.in_flight), self.slots)
        waiting = len(self.preparing) + len(self.in_flight) - busy
        return {**self.counts, "busy": busy, "slots": self.slots, "waiting": waiting}

    def close(self) -> None:
        self.watchdog.close()
        self.closed.set()
        self.preparer.shutdown(cancel_futures=True)
        self.engine.engine_core.shutdown()


def get_fast_tokenizer(engine: Any) -> Tokenizer:
    """The checkpoint's tokenizer as the library `tokenizers` has it."""
    tokenizer: Tokenizer | None = getattr(engine.get_tokenizer(), "backend_tokenizer", None)
    if tokenizer is None:
        raise JobError(
            "model.weights: the checkpoint has no fast tokenizer; use engine http with a server of this model"
        )
    return tokenizer


def exit_process(reason: str) -> NoReturn:
    """End as a crash does. An exception would count against the rows."""
    os.write(2, f"vlbatch: {reason}\n".encode())
    sys.stderr.flush()
    os._exit(ExitCode.HANG)
