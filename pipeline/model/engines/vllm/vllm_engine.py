"""Runs vLLM's engine inside the replica: its scheduler and kernels, our prompt and our pixels.

llguidance enforces schemas without white space, as in our own engine, and an answer that the budget cut is completed in
the same way. An engine that dies or does not start ends the process: whatever runs the process starts another one, and
the rows are asked again. vLLM takes tens of seconds to start, and needs its own versions of torch and transformers.

A thread of its own prepares requests (pixels to tensors, mostly) while vLLM steps. It is one thread, and requests go on
in its order, because vLLM's cache of processed media expects both of its sides to see them in the same order. Where
vLLM computes in this process, there is no such thread: preparing sets the number of torch's threads for a while.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import ExitCode, GenerateError, ItemError, JobError
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.engines.refusals import classify_refusal, shorten_message
from pipeline.model.engines.vllm.chat_inputs import ChatRenderer
from pipeline.model.engines.vllm.continuation_scores import ContinuationScores
from pipeline.model.engines.vllm.engine_requests import EngineRequest, plan_engine_requests
from pipeline.model.engines.vllm.prompt_inputs import build_prompt, check_prompt_tokens
from pipeline.model.families.base import Family
from pipeline.model.guidance.reply_completer import ReplyCompleter
from pipeline.types import Failure, Reply, Request, TokenLogprob
from pipeline.watchdog import Watchdog

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REQUESTS_PER_SLOT = 2  # so that vLLM never waits for the next request
HANG_S, LIVENESS_CHECK_S = 1800.0, 1.0
EngineInputs = list[tuple[EngineRequest, Any]]


class VllmEngine:
    def __init__(self, family: Family, adapter: Path | None = None, **arguments: Any):
        """`adapter` is a LoRA folder for all rows. `arguments` are those of vLLM's EngineArgs."""
        import torch
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
        self.get_thread_count = torch.get_num_threads
        self.dead_error, self.refusal_errors = EngineDeadError, (ValueError, VLLMClientError)
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
        self.preparing: deque[tuple[Request, Callable[[], bool], Callable[[], EngineInputs]]] = deque()
        has_own_process = hasattr(self.engine.engine_core, "ensure_alive")
        self.preparer = ThreadPoolExecutor(1, "prepare") if has_own_process else None
        self.in_flight: dict[str, tuple[Request, EngineRequest]] = {}  # inside vLLM, by its id
        self.scores: dict[str, ContinuationScores] = {}  # by the id of our request
        self.sent_again: set[str] = set()
        self.counts = dict.fromkeys(("rows", "prompt_tokens", "tokens_copied", "output_tokens"), 0)
        self.watchdog = Watchdog(HANG_S)
        self.closed = Event()
        if has_own_process:
            Thread(target=self.watch_liveness, name="liveness", daemon=True).start()

    def has_room(self) -> bool:
        return len(self.preparing) + len(self.in_flight) < REQUESTS_PER_SLOT * self.slots

    def submit(self, request: Request) -> None:
        self.start_preparing(request, ())

    def start_preparing(self, request: Request, parts: Sequence[EngineRequest]) -> None:
        """Keep, in the order of submission, what tells whether the inputs are ready, and what gives them."""
        work = partial(self.prepare_inputs, request, parts)
        prepared = self.preparer.submit(work) if self.preparer else None
        self.preparing.append((request, prepared.done, prepared.result) if prepared else (request, lambda: True, work))

    def prepare_inputs(self, request: Request, parts: Sequence[EngineRequest]) -> EngineInputs:
        """These parts of a request, or all, each with the input of vLLM's engine, which will accept it."""
        tasks, inputs = self.engine.get_supported_tasks(), list[tuple[EngineRequest, Any]]()
        prompt = None if self.chat_renderer else build_prompt(request, self.family)
        try:
            for part in parts or plan_engine_requests(request, self.family):
                inputs.append((part, self.render_input(request, prompt, part.added_tokens)))
                self.engine.input_processor.process_inputs(part.id, inputs[-1][1], part.params, tasks)
        except self.refusal_errors:
            for _, engine_input in inputs:
                self.forget_media(engine_input)
            raise
        return inputs

    def render_input(self, request: Request, prompt: dict[str, Any] | None, added_tokens: Sequence[int]) -> Any:
        if self.chat_renderer:
            return self.chat_renderer.render(request)
        assert prompt
        tokens = [*prompt["prompt_token_ids"], *added_tokens]
        return self.engine.renderer.render_cmpl([{**prompt, "prompt_token_ids": tokens}])[0]

    def forget_media(self, engine_input: Any) -> None:
        """vLLM believes that its engine has all media that were rendered; a refused request's never get there."""
        cache = self.engine.renderer.mm_processor_cache
        for key in chain.from_iterable(engine_input.get("mm_hashes", {}).values()) if cache else ():
            cache.invalidate(key)

    def step(self) -> list[Reply | Failure]:
        self.get_thread_count()  # torch's number becomes that of this thread: kernels would see it change meanwhile
        try:
            with self.watchdog:
                refused = self.admit_prepared()
                outputs = self.engine.step() if self.in_flight and not refused else []
        except self.dead_error as error:
            exit_process(f"vLLM's engine is dead: {error}")
        answers = [self.parse_output(output) for output in outputs if output.finished and not self.send_again(output)]
        return [*refused, *(answer for answer in answers if answer)]

    def admit_prepared(self) -> list[Failure]:
        """Pass on what is prepared; wait for the next where vLLM has nothing to do. Returns what vLLM refuses."""
        refused: list[Failure] = []
        while self.preparing and (self.preparing[0][1]() or not (self.in_flight or refused)):
            request, _, get_inputs = self.preparing.popleft()
            try:
                for part, engine_input in get_inputs():
                    self.engine.add_request(part.id, engine_input, part.params, lora_request=self.lora_request)
                    self.in_flight[part.id] = request, part
            except self.refusal_errors as error:
                message = shorten_message(str(error))
                refusal = GenerateError(classify_refusal(message), f"vLLM does not accept the request: {message}")
                refused.append(self.fail_request(request, refusal))
        return refused

    def fail_request(self, request: Request, error: ItemError) -> Failure:
        parts = [name for name, (owner, _) in self.in_flight.items() if owner is request]
        self.engine.abort_request(parts)
        for name in parts:
            del self.in_flight[name]
        self.scores.pop(request.id, None)
        return error.to_failure(request.id)

    def send_again(self, output: Any) -> bool:
        """Once, where vLLM ends a request with an error: it knows then which media it has to send with it."""
        name = output.request_id
        if get_finish_reason(output) != "error" or name in self.sent_again or name not in self.in_flight:
            self.sent_again.discard(name)
            return False
        self.sent_again.add(name)
        request, part = self.in_flight.pop(name)
        self.start_preparing(request, [part])
        return True

    def watch_liveness(self) -> None:
        """vLLM's step waits forever for an engine that was killed, for example because memory ran out."""
        while not self.closed.wait(LIVENESS_CHECK_S):
            try:
                self.engine.engine_core.ensure_alive()
            except self.dead_error as error:
                if not self.closed.is_set():
                    exit_process(f"vLLM's engine is dead: {error}")

    def parse_output(self, output: Any) -> Reply | Failure | None:
        """None where it is a part of a reply, or where the request has failed already."""
        if output.request_id not in self.in_flight:
            return None
        request, part = self.in_flight.pop(output.request_id)
        self.counts["prompt_tokens"] += len(output.prompt_token_ids)
        self.counts["tokens_copied"] += output.num_cached_tokens or 0
        reply: Reply | Failure | None
        try:
            if self.family.knows_model:
                check_prompt_tokens([*request.input_ids.tolist(), *part.added_tokens], output, self.family)
            if (finish_reason := get_finish_reason(output)) not in ("stop", "length"):
                raise GenerateError("engine", f"vLLM ended the row with {finish_reason!r}")
            reply = self.parse_reply(request, part, output)
        except ItemError as error:
            reply = self.fail_request(request, error)
        self.counts["rows"] += reply is not None
        return reply

    def parse_reply(self, request: Request, part: EngineRequest, output: Any) -> Reply | None:
        if request.pooling:
            return Reply(request.id, "", vector=output.outputs.data.float().numpy())
        completion = output.outputs[0]
        if part.question is None:
            self.counts["output_tokens"] += len(completion.token_ids)
            return replace(self.build_reply(request, completion), prompt_tokens=len(output.prompt_token_ids))
        scores = self.scores.setdefault(request.id, ContinuationScores(request.continuations))
        if not scores.add(part.question, {token: told.logprob for token, told in completion.logprobs[0].items()}):
            return None
        return Reply(request.id, "", continuation_logprobs=tuple(self.scores.pop(request.id).logprobs))

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
        if self.preparer:
            self.preparer.shutdown(cancel_futures=True)
        self.engine.engine_core.shutdown()


def get_finish_reason(output: Any) -> str | None:
    if hasattr(output, "error"):  # of a request for a vector
        return "error" if output.error else "stop"
    reason: str | None = output.outputs[0].finish_reason
    return reason


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
