"""Step `parity`: tiny checkpoints of every family in bfloat16 against transformers, in every mode of the engine.

The reference computes in float32 on the CPU what the model would have said at each token that the engine chose. So each
token is checked on its own: one that differs for want of precision does not hide the others. How far bfloat16 may be
off is told by transformers' own model in bfloat16 on the same device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.model import family_loader, hf_models
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.scheduler import select_sampled
from pipeline.types import Continuation, Pooling, Reply, Request
from tests.gpu.bench import Bench
from tests.gpu.smoke import relative_error
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES, Lab

MODES: dict[str, dict[str, Any]] = {
    "flash, graphs, launched ahead": {},
    "flash, graphs": {"in_turn": True},
    "flash": {"graphs": False, "reuse_prefixes": False},
    "sdpa": {"attention": "sdpa"},
    "float32": {"attention": "sdpa", "dtype": "float32"},
}
TOY_MODES = ("flash, graphs, launched ahead", "float32")
ALLOWED_RATIOS = {0.5: 2.0, 0.9: 6.0}  # of our error to transformers' in the same precision, by share of the tokens;
# a router that rounds the other way changes some tokens a lot
FLOAT32_ERROR = 1e-3
CONTINUATIONS = tuple(Continuation(tokens, 0, "") for tokens in ((65, 66), (70,), (71, 72, 73)))
VALUES = ("probabilities of choices", "vectors (last)", "vectors (mean)")
Answers = dict[str, tuple[list[int], Tensor]]  # by request: tokens, and the logits that each was chosen from


def run(bench: Bench) -> None:
    with bench.stand_ins():
        for model_type in FAMILIES + HYBRID_FAMILIES:
            check_family(bench, model_type, TOY_MODES if bench.is_toy else tuple(MODES))


def check_family(bench: Bench, model_type: str, modes: tuple[str, ...]) -> None:
    lab = Lab(bench.folder / model_type, model_type)
    round_weights(lab)
    requests = build_requests(lab)
    exact, rounded = lab.load_reference(), load_rounded_reference(lab, bench.device)
    alone = {request.id: lab.generate_alone(request)[0] for request in requests}
    for mode in modes:
        engine = open_engine(lab, bench.device, **MODES[mode])
        answers = answer_with_logits(engine, requests)
        is_replayed = bool(engine.graphs and engine.graphs.replay_count)
        is_copied = engine.metrics()["tokens_copied"] > 0
        engine.close()
        name = f"{model_type}, {mode}"
        ours, theirs = [], []
        for request in requests:
            tokens = cut_before_vision(lab, answers[request.id][0])
            logits = answers[request.id][1][: len(tokens)]
            expected = compute_logits(lab, exact, request, tokens)
            ours += measure_errors(logits, expected)
            theirs += measure_errors(compute_logits(lab, rounded, request, tokens), expected)
        for share, ratio in ALLOWED_RATIOS.items():
            limit = FLOAT32_ERROR if mode == "float32" else ratio * float(np.quantile(theirs, share))
            bench.report.check_at_most(f"{name}: error of logits, {share:.0%}", float(np.quantile(ours, share)), limit)
        bench.report.check(f"{name}: graphs replayed", is_replayed == ("graphs" in mode))
        is_reusing = MODES[mode].get("reuse_prefixes", True)
        bench.report.check(f"{name}: what prompts share is copied", is_copied == is_reusing)
        same = [answers[request.id][0] == alone[request.id] for request in requests]
        bench.report.figure(f"{name}: answers equal to generate in float32", f"{sum(same)} of {len(same)}")
    check_choices_and_vectors(bench, lab, model_type, exact, rounded)


def build_requests(lab: Lab) -> list[Request]:
    shared = lab.make_image(4, 3)
    return [
        lab.build_request("first of two alike", shared, "a" * 80),
        lab.build_request("second", shared, "a" * 80 + "b"),
        lab.build_request("picture", lab.make_image(5, 6), "what is it?"),
        lab.build_request("film", lab.make_video(3, 3, 2), "and?", max_new_tokens=20),
        lab.build_request("text", "hello"),
        lab.build_request("two", lab.make_image(2, 2), "or", lab.make_image(4, 2), max_new_tokens=3),
        lab.build_request("late", lab.make_image(3, 3), "?"),
    ]


def open_engine(lab: Lab, device: torch.device, *, in_turn: bool = False, **options: Any) -> TorchEngine:
    """Three slots for seven requests, and prompts that take several passes."""
    options = {"slots": 3, "prefill_tokens": 25, "kv_tokens": 700, "dtype": "bfloat16"} | options
    engine = TorchEngine(lab.folder, lab.family, device=device.type, **options)
    engine.can_launch_ahead = engine.can_launch_ahead and not in_turn
    return engine


def answer_with_logits(engine: TorchEngine, requests: list[Request]) -> Answers:
    logits: dict[str, list[Tensor]] = {request.id: [] for request in requests}
    tokens: dict[str, list[int]] = {}
    step_runner, retire = engine.step_runner, engine.retire_finished

    def run_and_record(batch: Any, *unread: Any) -> Any:
        outputs = step_runner(batch, *unread)
        for sequence, line in zip(select_sampled(batch), outputs.logits, strict=True):
            logits[sequence.request.id].append(line.float().cpu())
        return outputs

    def retire_and_record() -> None:
        for sequence in engine.scheduler.running:
            if sequence.finish:
                tokens[sequence.request.id] = sequence.token_ids[
                    sequence.prompt_tokens : sequence.known_tokens
                ].tolist()
        retire()

    engine.step_runner, engine.retire_finished = run_and_record, retire_and_record
    replies = list(generate_replies(engine, requests))
    engine.step_runner, engine.retire_finished = step_runner, retire
    failures = [reply for reply in replies if not isinstance(reply, Reply)]
    if failures:
        raise RuntimeError(f"the engine failed on a row: {failures[0]}")
    return {name: (tokens[name], torch.stack(logits[name][: len(tokens[name])])) for name in tokens}


def round_weights(lab: Lab) -> None:
    """To those that bfloat16 can hold, so that precision is lost in the arithmetic only."""
    path = lab.folder / "model.safetensors"
    save_file({name: weight.bfloat16().float() for name, weight in load_file(path).items()}, path, {"format": "pt"})


def load_rounded_reference(lab: Lab, device: torch.device) -> Any:
    model_class = hf_models.get_model_class(family_loader.load_config(lab.folder)["model_type"])
    return model_class.from_pretrained(lab.folder, dtype=torch.bfloat16).eval().to(device)


def cut_before_vision(lab: Lab, tokens: list[int]) -> list[int]:
    """Up to the first vision token that the random model says: transformers would look for its picture."""
    pads = (lab.family.image_token, lab.family.video_token)
    return tokens[: 1 + next((at for at, token in enumerate(tokens) if token in pads), len(tokens))]


def check_choices_and_vectors(bench: Bench, lab: Lab, model_type: str, exact: Any, rounded: Any) -> None:
    """Probabilities of continuations, and vectors, beside a row that is answered."""
    picture = lab.make_image(4, 3)
    scored = replace(lab.build_request("scored", picture, "cat or dog?"), continuations=CONTINUATIONS)
    pooled = [
        replace(lab.build_request(method, picture, "a cat"), pooling=Pooling("language", method))
        for method in ("last", "mean")
    ]
    requests = [scored, lab.build_request("answered", "hello"), *pooled]
    expected, theirs = (
        [compute_choices(lab, one, scored), *compute_vectors(lab, one, pooled)] for one in (exact, rounded)
    )
    for dtype in ("bfloat16", "float32"):
        engine = open_engine(lab, bench.device, dtype=dtype)
        replies = {reply.id: reply for reply in generate_replies(engine, requests)}
        engine.close()
        ours = [torch.tensor(replies["scored"].continuation_logprobs)]
        ours += [torch.from_numpy(replies[request.id].vector) for request in pooled]
        for name, our_values, their_values, values in zip(VALUES, ours, theirs, expected, strict=True):
            error, their_error = (relative_error(each, values) for each in (our_values, their_values))
            limit = FLOAT32_ERROR if dtype == "float32" else max(0.01, 3 * their_error)
            bench.report.check_at_most(f"{model_type}, {dtype}: error of {name}", error, limit)


def compute_choices(lab: Lab, model: Any, request: Request) -> Tensor:
    """Log-probabilities of the continuations."""
    logprobs = []
    for continuation in request.continuations:
        tokens = list(continuation.token_ids)
        lines = compute_logits(lab, model, request, tokens).log_softmax(-1)
        logprobs.append(sum(line[token].item() for line, token in zip(lines, tokens, strict=True)))
    return torch.tensor(logprobs)


@torch.inference_mode()
def compute_vectors(lab: Lab, model: Any, requests: Sequence[Request]) -> list[Tensor]:
    vectors = []
    for request in requests:
        states = model.model(**build_inputs(lab, model, request, [])).last_hidden_state[0].float().cpu()
        vectors.append(states[-1] if request.pooling and request.pooling.method == "last" else states.mean(0))
    return vectors


@torch.inference_mode()
def compute_logits(lab: Lab, model: Any, request: Request, tokens: list[int]) -> Tensor:
    """What the model says before each of the tokens, if they are the answer: [tokens, vocabulary]."""
    logits = model(**build_inputs(lab, model, request, tokens[:-1])).logits[0]
    return logits[len(request.input_ids) - 1 :].float().cpu()


def build_inputs(lab: Lab, model: Any, request: Request, tokens: list[int]) -> dict[str, Tensor]:
    """Of a prompt that the tokens follow."""
    ids = torch.from_numpy(np.concatenate([request.input_ids, np.asarray(tokens, np.int32)])).long()[None]
    kinds = (ids == lab.family.image_token).int() + 2 * (ids == lab.family.video_token).int()
    kinds[:, len(request.input_ids) :] = 0
    first = int(request.positions.max()) + 1
    answer_positions = np.tile(np.arange(first, first + len(tokens)), (3, 1))
    positions = torch.from_numpy(np.concatenate([request.positions, answer_positions], 1)).long()
    inputs = {"input_ids": ids, "position_ids": positions[:, None], "mm_token_type_ids": kinds}
    inputs |= lab.build_vision_arguments(request)
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items()}


def measure_errors(logits: Tensor, expected: Tensor) -> Iterator[float]:
    return ((logits - expected).norm(dim=-1) / expected.norm(dim=-1)).tolist()
