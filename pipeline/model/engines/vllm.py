"""Requests -> replies through vLLM's engine inside the replica: its scheduler and kernels, our prompt and our pixels.

vLLM gets prompt ids with one pad token for each medium and the prepared frames, is told not to resize or sample them,
and writes the pads itself; the prompt it then reads is compared with ours, row by row. Schemas are held by llguidance,
without white space, as in our own engine; where the budget ends first, the answer is ended as ours would be.
A dead engine ends the process: what runs it starts it anew, and the rows are asked again.

It costs what vLLM costs: tens of seconds to start, its own pins of torch and transformers, torchvision.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import GenerateError, ItemError, JobError
from pipeline.job import Job, VllmEngine
from pipeline.model import weights
from pipeline.model.engines.ending import Endings
from pipeline.model.engines.http.verdict import LONGEST_SAYING, TOO_LONG
from pipeline.model.engines.torch.rows import Vocabulary
from pipeline.model.families.qwen import Qwen, runs
from pipeline.model.prompt import Mark, pieces
from pipeline.registry import nearest
from pipeline.types import Clip, Failure, Reply, Request
from pipeline.watchdog import EXIT_CODE, Watchdog

OURS = {  # arguments of vLLM that a job says elsewhere
    "model": "model.weights",
    "tokenizer": "model.weights",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "tensor_parallel_size": "model.tensor_parallel",
    "max_model_len": "model.context.max_length",
}
AHEAD = 2  # rows handed over for each that can be decoded at once, so that vLLM never waits for one
HANG_S = 1800.0


class Vllm:
    def __init__(self, folder: Path, family: Qwen, **arguments: Any):
        """`arguments` are those of vLLM's EngineArgs."""
        import vllm

        self.vllm = vllm
        self.family = family
        thinking = {"reasoning_parser": "qwen3"} if family.thinking else {}
        usual = {
            "max_model_len": -1,  # what fits
            "mm_processor_cache_gb": 0,  # no picture comes twice
            "disable_log_stats": True,
            "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        }
        try:
            made = vllm.EngineArgs(model=str(folder), **{**usual, **thinking, **arguments})
            self.engine = vllm.LLMEngine.from_engine_args(made)
        except (ValueError, TypeError) as error:
            raise JobError(f"engine: vLLM refuses its arguments: {error}") from error
        self.ahead: int = AHEAD * self.engine.vllm_config.scheduler_config.max_num_seqs
        self.vocabulary = Vocabulary.of(family.tokenizer, (), thinking=family.thinking)
        self.endings = Endings(family.tokenizer)
        self.underway: dict[str, Request] = {}
        self.answers: list[Reply | Failure] = []
        self.counts = {"rows": 0, "prompt_tokens": 0, "output_tokens": 0}
        self.watchdog = Watchdog(HANG_S)

    @classmethod
    def open(cls, job: Job) -> Vllm:
        assert isinstance(job.engine, VllmEngine)
        if find_spec("vllm") is None:
            raise JobError("engine.kind: vllm is not installed where the job runs: pip install vlbatch[vllm]")
        for problem in cls.problems(job):
            raise JobError(problem)
        folder = weights.locate(job.model.weights, job.model.revision)
        family = weights.family(folder, model=job.model, add_vision_id=job.media.add_vision_id)
        assert isinstance(family, Qwen)
        said = {name: value for name, value in job.engine.model_dump(exclude={"kind"}).items() if value is not None}
        longest = {"max_model_len": job.model.context.max_length} if job.model.context.max_length else {}
        return cls(
            folder, family, dtype=dtype(folder, job), tensor_parallel_size=job.model.tensor_parallel, **longest, **said
        )

    @staticmethod
    def problems(job: Job) -> list[str]:
        """What vLLM does not know or does its own way."""
        assert isinstance(job.engine, VllmEngine)
        said = job.engine.model_extra or {}
        elsewhere = {
            "attention": (job.model.attention != "auto", "attention_backend"),
            "quantize": (job.model.quantize, "quantization, with a checkpoint that is quantised"),
            "context.rope": (job.model.context.rope, "hf_overrides"),
            "overrides": (job.model.overrides, "hf_overrides"),
        }
        found = [f"model.{key}: with vLLM this is engine.{name}" for key, (given, name) in elsewhere.items() if given]
        found += [f"engine.{name}: say it as {OURS[name]}" for name in said if name in OURS]
        for name in sorted(said.keys() - OURS.keys()) if options() else ():
            if name not in options():
                found.append(f"engine.{name}: vLLM's engine has no such argument{nearest(name, options())}")
        return found

    def room(self) -> bool:
        return len(self.underway) < self.ahead

    def submit(self, request: Request) -> None:
        try:
            self.engine.add_request(request.id, self.prompt(request), self.sampling(request))
            self.underway[request.id] = request
        except ItemError as error:
            self.answers.append(error.failure(request.id))
        except self.refusals() as error:
            said = str(error)[:LONGEST_SAYING]  # it may hold every pixel
            kind = "too_long" if TOO_LONG.search(said) else "refused"
            self.answers.append(GenerateError(kind, f"vLLM does not take it: {said}").failure(request.id))
        except self.death() as error:
            end(error)

    def step(self) -> list[Reply | Failure]:
        if self.underway and not self.answers:
            try:
                with self.watchdog:
                    outputs = self.engine.step()
            except self.death() as error:
                end(error)
            self.answers += [self.answer(output) for output in outputs if output.finished]
        answers, self.answers = self.answers, []
        return answers

    def prompt(self, request: Request) -> dict[str, Any]:
        """Ids with one pad for each medium, and the frames as arrays of [frames, height, width, 3]."""
        frames = [(clip, clip.pixels.transpose(0, 2, 3, 1)) for clip in request.clips]
        images = [pixels[0] for clip, pixels in frames if clip.kind == "image"]
        videos = [(pixels, timing(clip)) for clip, pixels in frames if clip.kind == "video"]
        media: dict[str, Any] = {"image": pictures(images)} if images else {}
        kept: dict[str, Any] = {"do_resize": False}
        if videos:
            media["video"] = videos
            kept["do_sample_frames"] = False
        said: dict[str, Any] = {"prompt_token_ids": list(self.tokens(request))}
        return said | ({"multi_modal_data": media, "mm_processor_kwargs": kept} if media else {})

    def tokens(self, request: Request) -> Iterator[int]:
        family = self.family

        def flat() -> Iterator[str | int]:
            for piece in pieces(request.turns, family.style, label=family.add_vision_id):
                if isinstance(piece, Clip):
                    yield from self.placeholder(piece)
                else:
                    yield family.marks[piece] if isinstance(piece, Mark) else piece

        for run in runs(flat(), family.tokenizer):
            assert isinstance(run, list)
            yield from run

    def placeholder(self, clip: Clip) -> list[int]:
        """What vLLM replaces; times and markers of Qwen3-VL's video are part of that."""
        family = self.family
        if clip.kind == "video" and family.times == "source":
            return [family.video_token]
        pad = family.image_token if clip.kind == "image" else family.video_token
        return [family.vision_start, pad, family.vision_end]

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
            self.compare(request, output.prompt_token_ids)
            if said.finish_reason not in ("stop", "length"):
                raise GenerateError("engine", f"vLLM ended the row with {said.finish_reason!r}")
            return self.endings.ended(self.reply(request, said), request, self.spoken(list(said.token_ids))[1])
        except ItemError as error:
            return error.failure(request.id)

    def compare(self, request: Request, read: list[int]) -> None:
        """The same text and as many vision tokens, or its boxes would be those of another picture."""
        ours, decode = request.input_ids.tolist(), self.family.tokenizer.decode
        same = read == ours or decode(read, skip_special_tokens=False) == decode(ours, skip_special_tokens=False)
        if not same:
            raise GenerateError(
                "prompt", f"vLLM read {len(read):,} prompt tokens where {len(ours):,} were prepared, or other ones"
            )

    def reply(self, request: Request, said: Any) -> Reply:
        thinking, answer = self.spoken(list(said.token_ids))
        text, count = self.vocabulary.text(answer), len(said.token_ids)
        return Reply(
            id=request.id,
            text=text if thinking is None else text.lstrip(),
            finish=said.finish_reason,
            tokens=count,
            thinking=None if thinking is None else self.vocabulary.text(thinking).strip(),
            logprob=said.cumulative_logprob / count if said.cumulative_logprob is not None and count else None,
        )

    def spoken(self, tokens: list[int]) -> tuple[list[int] | None, list[int]]:
        """What was thought, and what was answered."""
        end = self.vocabulary.think_end
        if end is None:
            return None, tokens
        cut = tokens.index(end) if end in tokens else len(tokens)
        return tokens[:cut], tokens[cut + 1 :]

    def refusals(self) -> tuple[type[Exception], ...]:
        known = getattr(getattr(self.vllm, "exceptions", None), "VLLMClientError", ValueError)
        return ValueError, known

    def death(self) -> type[Exception]:
        from vllm.v1.engine.exceptions import EngineDeadError

        dead: type[Exception] = EngineDeadError
        return dead

    def metrics(self) -> Mapping[str, float]:
        return {**self.counts, "busy": len(self.underway), "slots": self.ahead // AHEAD, "waiting": 0}

    def close(self) -> None:
        self.watchdog.close()
        self.engine.engine_core.shutdown()


def pictures(images: list[Any]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(image) for image in images]


def timing(clip: Clip) -> dict[str, Any]:
    """What vLLM is told of a video's clock: a frame at each of its times, in all as many as make its rate."""
    times = list(clip.times) or [index / clip.fps for index in range(len(clip.pixels))]
    total = len(times) / clip.fps
    return {
        "fps": 1.0,
        "frames_indices": times,
        "total_num_frames": total,
        "duration": total,
        "do_sample_frames": False,
    }


def dtype(folder: Path, job: Job) -> str:
    """As the checkpoint says; vLLM's own `auto` would run one of float32 in half of that."""
    config = weights.config(folder)
    text = config.get("text_config", config)
    said = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return str(said or "auto") if job.model.dtype == "auto" else job.model.dtype


@cache
def options() -> dict[str, Any]:
    """The arguments that the installed vLLM takes, read from its source: importing it takes ten seconds."""
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"]
    fields = [node.target for each in classes for node in each.body if isinstance(node, ast.AnnAssign)]
    return {field.id: None for field in fields if isinstance(field, ast.Name)}


def end(error: BaseException) -> None:
    """As a crash, which is what it is: raised, it would be taken for the fault of the rows."""
    os.write(2, f"vlbatch: vLLM's engine is dead ({error}); ending\n".encode())
    sys.stderr.flush()
    os._exit(EXIT_CODE)
