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
from importlib.util import find_spec
from threading import Event, Thread
from typing import Any, NoReturn

from pipeline.errors import GenerateError, ItemError, JobError
from pipeline.job.spec import Job
from pipeline.model import weights
from pipeline.model.engines.http.responses import LONGEST_SAYING, TOO_LONG
from pipeline.model.engines.torch.sequence import Vocabulary
from pipeline.model.engines.vllm.arguments import arguments, problems
from pipeline.model.engines.vllm.prompt_inputs import compare, prompt
from pipeline.model.families.qwen import Qwen
from pipeline.model.guidance.truncated import Endings
from pipeline.types import Failure, Reply, Request
from pipeline.watchdog import EXIT_CODE, Watchdog

AHEAD = 2  # rows handed over for each that can be decoded at once, so that vLLM never waits for one
HANG_S, LOOK_S = 1800.0, 1.0
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}  # unless the environment says otherwise


class Vllm:
    problems = staticmethod(problems)

    def __init__(self, family: Qwen, **arguments: Any):
        """`arguments` are those of vLLM's EngineArgs."""
        import vllm
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self.engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
        except (ValueError, TypeError) as error:
            raise JobError(f"engine: vLLM refuses its arguments: {error}") from error
        except RuntimeError as error:
            end(f"vLLM does not start, most often for want of memory: {error}")
        self.vllm, self.dead, self.refusals = vllm, EngineDeadError, (ValueError, VLLMClientError)
        self.slots: int = self.engine.vllm_config.scheduler_config.max_num_seqs
        self.family = family
        self.vocabulary = Vocabulary.of(family.tokenizer, (), thinking=family.thinking)
        self.endings = Endings(family.tokenizer)
        self.underway: dict[str, Request] = {}
        self.refused: list[Failure] = []
        self.counts = {"rows": 0, "prompt_tokens": 0, "output_tokens": 0}
        self.watchdog = Watchdog(HANG_S)
        self.closed = Event()
        if hasattr(self.engine.engine_core, "ensure_alive"):  # it has a process of its own
            Thread(target=self.guard, name="guard", daemon=True).start()

    @classmethod
    def open(cls, job: Job) -> Vllm:
        if find_spec("vllm") is None:
            raise JobError("engine.kind: vllm is not installed where the job runs: pip install 'vlbatch[vllm]'")
        for problem in problems(job):
            raise JobError(problem)
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        folder = weights.locate(job.model.weights, job.model.revision)
        family = weights.family(folder, model=job.model, add_vision_id=job.media.add_vision_id)
        assert isinstance(family, Qwen)
        return cls(family, **arguments(job, folder, thinking=family.thinking))

    def room(self) -> bool:
        return len(self.underway) < AHEAD * self.slots

    def submit(self, request: Request) -> None:
        try:
            self.engine.add_request(request.id, prompt(request, self.family), self.sampling(request))
            self.underway[request.id] = request
        except self.refusals as error:
            said = str(error)[:LONGEST_SAYING]  # it may hold every pixel
            kind = "too_long" if TOO_LONG.search(said) else "refused"
            self.refused.append(GenerateError(kind, f"vLLM does not take it: {said}").failure(request.id))
        except self.dead as error:
            end(f"vLLM's engine is dead: {error}")

    def step(self) -> list[Reply | Failure]:
        refused, self.refused = self.refused, []
        if refused or not self.underway:
            return [*refused]
        try:
            with self.watchdog:
                outputs = self.engine.step()
        except self.dead as error:
            end(f"vLLM's engine is dead: {error}")
        return [self.answer(output) for output in outputs if output.finished]

    def guard(self) -> None:
        """vLLM's step waits for ever for an engine that was killed, as the kernel does where memory ends."""
        while not self.closed.wait(LOOK_S):
            try:
                self.engine.engine_core.ensure_alive()
            except self.dead as error:
                if not self.closed.is_set():
                    end(f"vLLM's engine is dead: {error}")

    def sampling(self, request: Request) -> Any:
        how, thinking = request.sampling, request.sampling.thinking_tokens if self.family.thinking else None
        guide = self.vllm.sampling_params.StructuredOutputsParams(json=request.schema) if request.schema else None
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

    def answer(self, output: Any) -> Reply | Failure:
        request, said = self.underway.pop(output.request_id), output.outputs[0]
        self.counts["rows"] += 1
        self.counts["prompt_tokens"] += len(output.prompt_token_ids)
        self.counts["output_tokens"] += len(said.token_ids)
        try:
            compare(request, output.prompt_token_ids, self.family)
            if said.finish_reason not in ("stop", "length"):
                raise GenerateError("engine", f"vLLM ended the row with {said.finish_reason!r}")
            return self.reply(request, said)
        except ItemError as error:
            return error.failure(request.id)

    def reply(self, request: Request, said: Any) -> Reply:
        thought, spoken = self.split(list(said.token_ids))
        text, count = self.vocabulary.text(spoken), len(said.token_ids)
        reply = Reply(
            id=request.id,
            text=text if thought is None else text.lstrip(),
            finish=said.finish_reason,
            tokens=count,
            thinking=None if thought is None else self.vocabulary.text(thought).strip(),
            logprob=said.cumulative_logprob / count if said.cumulative_logprob is not None and count else None,
        )
        return self.endings.ended(reply, request, spoken)

    def split(self, tokens: list[int]) -> tuple[list[int] | None, list[int]]:
        """What was thought, and what was answered."""
        end = self.vocabulary.think_end
        if end is None:
            return None, tokens
        cut = tokens.index(end) if end in tokens else len(tokens)
        return tokens[:cut], tokens[cut + 1 :]

    def metrics(self) -> Mapping[str, float]:
        busy = min(len(self.underway), self.slots)
        return {**self.counts, "busy": busy, "slots": self.slots, "waiting": len(self.underway) - busy}

    def close(self) -> None:
        self.watchdog.close()
        self.closed.set()
        self.engine.engine_core.shutdown()


def end(why: str) -> NoReturn:
    """As a crash, which is what it is: raised, it would be taken for the fault of the rows."""
    os.write(2, f"vlbatch: {why}\n".encode())
    sys.stderr.flush()
    os._exit(EXIT_CODE)
