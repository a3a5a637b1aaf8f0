"""A model divided among processes answers as it does in one process."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import collectives, memory, step_runner
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.scheduler import ExpectedAnswer, select_sampled
from pipeline.model.engines.torch.shard import TensorParallel
from pipeline.types import Failure, Reply, Request
from tests.model.awq_checkpoint import write_awq_checkpoint
from tests.model.engines.conftest import GAP, QUANTIZABLE_SIZES, Lab, needs_compiler

pytestmark = pytest.mark.process


def open_engine(lab: Lab, ranks: int, **options) -> TorchEngine:
    sizes = {"slots": 4, "kv_tokens": 700, "prefill_tokens": 60, "patches": 64}
    return TorchEngine(lab.folder, lab.family, device="cpu", tensor_parallel=ranks, hang_s=300, **sizes | options)


def generate_with_logits(engine: TorchEngine, requests) -> dict[str, tuple[list[int], torch.Tensor]]:
    """Tokens by request, and the logits that each was sampled from."""
    logits: dict[str, list[torch.Tensor]] = {request.id: [] for request in requests}
    tokens: dict[str, list[int]] = {}
    step_runner, retire = engine.step_runner, engine.retire_finished

    def run_and_record(batch, *unread):
        outputs = step_runner(batch, *unread)
        for sequence, line in zip(select_sampled(batch), outputs.logits, strict=True):
            logits[sequence.request.id].append(line.clone())
        return outputs

    def retire_and_record():
        tokens.update(
            {
                sequence.request.id: sequence.token_ids[sequence.prompt_tokens : sequence.known_tokens].tolist()
                for sequence in engine.scheduler.running
                if sequence.finish
            }
        )
        retire()

    engine.step_runner, engine.retire_finished = run_and_record, retire_and_record
    answers = list(generate_replies(engine, requests))
    engine.step_runner, engine.retire_finished = step_runner, retire
    assert not [answer for answer in answers if not isinstance(answer, Reply)]
    return {name: (tokens[name], torch.stack(logits[name])) for name in tokens}


def build_requests(lab: Lab) -> list[Request]:
    same = lab.make_image(4, 3)
    return [
        lab.build_request("text", "the cat"),
        lab.build_request("picture", lab.make_image(7, 5), "what is it?", max_new_tokens=20),
        lab.build_request("same", same, "who?"),
        lab.build_request("again", same, "where?", temperature=0.8, seed=3),
        lab.build_request("two", lab.make_image(3, 8), "and", lab.make_image(2, 2), "differ how?"),
        lab.build_request("film", lab.make_video(9, 3, 2), "and then?", max_new_tokens=16),
        lab.build_request("long", "a" * 150, max_new_tokens=5),
    ]


def check_divided(lab: Lab, ranks: int, requests: list[Request], expected, **options) -> int:
    """Compare answers and logits with those of one process. Returns the bytes of text weights on rank 0."""
    kind = family_loader.load_config(lab.folder)["model_type"]
    tolerance = 3e-4 if "moe" in kind else 1e-4  # the routing of experts amplifies the order of sums
    divided = open_engine(lab, ranks, **options)
    divided.scheduler.expected_answer = ExpectedAnswer(1)
    for launch_ahead in (False, True):  # True as on a GPU
        divided.can_launch_ahead = launch_ahead
        actual = generate_with_logits(divided, requests)
        assert not divided.vision_cache.features_by_clip
        assert divided.metrics()["tokens_copied"] > 0
        assert divided.metrics()["moved_runs"] > 0
        for name, (tokens, logits) in expected.items():
            draws = [index for index, (best, second) in enumerate(logits.topk(2).values) if best - second < GAP]
            end = draws[0] if draws else len(tokens)
            assert actual[name][0][:end] == tokens[:end], name
            actual_logits = actual[name][1][: len(logits)]  # a step that was launched ahead may be one too many
            torch.testing.assert_close(actual_logits[: end + 1], logits[: end + 1], atol=tolerance, rtol=1e-4)
    divided.close()
    return count_weight_bytes(divided)


def count_weight_bytes(engine: TorchEngine) -> int:
    layers = engine.step_runner.loaded.language_model.layers
    return sum(tensor.nbytes for tensor in (*layers.parameters(), *layers.buffers()) if tensor.dim() > 1)


def check_equal_to_one_process(lab: Lab, ranks: int) -> None:
    requests, alone = build_requests(lab), open_engine(lab, 1)
    expected = generate_with_logits(alone, requests)
    assert check_divided(lab, ranks, requests, expected) < count_weight_bytes(alone) / ranks * 1.2


def mark_slow(*families: str) -> list[Any]:
    return [pytest.param(family, marks=pytest.mark.slow) for family in families]


@pytest.mark.parametrize(
    "lab", ["qwen2_5_vl", "qwen3_5", *mark_slow("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5_moe")], indirect=True
)
def test_two_ranks_give_the_answers_and_logits_of_one_process(lab: Lab):
    check_equal_to_one_process(lab, 2)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("lab", ["qwen2_5_vl", "qwen3_vl_moe"], indirect=True)
def test_two_ranks_with_compiled_layers_answer_as_one_process(lab: Lab):
    requests, alone = build_requests(lab), open_engine(lab, 1)
    check_divided(lab, 2, requests, generate_with_logits(alone, requests), compile=True)


@pytest.mark.parametrize("lab", ["qwen3_vl", "qwen3_vl_moe", *mark_slow("qwen2_5_vl")], indirect=True)
def test_four_ranks_give_the_answers_and_logits_of_one_process(lab: Lab):
    """Two ranks share a key head, and each has one expert of the mixture."""
    check_equal_to_one_process(lab, 4)


@pytest.mark.parametrize("made_by", ["AWQ", pytest.param("us", marks=pytest.mark.slow)])
def test_divided_four_bit_weights_answer_as_in_one_process(made_by, tmp_path):
    lab = Lab(tmp_path / "dense", "qwen3_vl", text_config=QUANTIZABLE_SIZES, vision_config={"out_hidden_size": 128})
    if made_by == "AWQ":
        (tmp_path / "awq").mkdir()
        write_awq_checkpoint(tmp_path / "awq", lab.folder)
        lab.folder = tmp_path / "awq"
    options = {"dtype": "float32"} | ({"quantize": "int4"} if made_by == "us" else {})
    requests, alone = build_requests(lab), open_engine(lab, 1, **options)
    expected = generate_with_logits(alone, requests)
    assert check_divided(lab, 2, requests, expected, **options) < count_weight_bytes(alone) / 2 * 1.2


@pytest.fixture(scope="module")
def pair(one_lab: Lab):
    engine = open_engine(one_lab, 2, patches=4096)
    yield engine
    engine.close()


def test_a_failure_of_all_ranks_at_the_same_place_costs_one_row(pair, one_lab, monkeypatch):
    build_step_inputs = step_runner.build_step_inputs

    def build_wrong_inputs(batch):
        inputs = build_step_inputs(batch)
        is_bad = any(sequence.request.id == "bad" for sequence, _ in batch)
        return replace(inputs, query_lengths=[length + 1 for length in inputs.query_lengths]) if is_bad else inputs

    monkeypatch.setattr(step_runner, "build_step_inputs", build_wrong_inputs)
    answers = {
        answer.id: answer
        for answer in generate_replies(pair, [one_lab.build_request(name, "hello") for name in ("a", "bad", "c")])
    }
    assert answers["bad"].kind == "model"
    assert isinstance(answers["a"], Reply)
    assert isinstance(answers["c"], Reply)


def test_an_image_that_breaks_the_tower_of_another_rank_fails_its_request_alone(pair, one_lab, caplog):
    good, bad = one_lab.make_image(6, 6), one_lab.make_image(2, 2)
    for request in (one_lab.build_request("good", good, "?"), one_lab.build_request("bad", bad, "?")):
        pair.submit(request)
    key = pair.scheduler.waiting[1].clip_keys[0]
    clip = pair.vision_cache.clips[key]  # the smaller image goes to the other rank
    clip.pending_slices = [replace(clip.pending_slices[0], pixels=np.zeros((1, 3, 8, 8), np.uint8))]
    answers = {}
    while pair.scheduler.waiting or pair.scheduler.running:
        answers |= {answer.id: answer for answer in pair.step()}
    assert isinstance(answers["good"], Reply)
    assert isinstance(answers["bad"], Failure)
    assert answers["bad"].kind == "model"


def test_pixels_reach_other_ranks_in_shared_memory(pair, one_lab, monkeypatch):
    worker_group, sizes = pair.vision_cache.collectives.worker_group, []
    send_command = worker_group.send_command

    def send_and_measure(command, *arguments):
        sizes.append(max(len(pickle.dumps(part)) for part in arguments))
        send_command(command, *arguments)

    monkeypatch.setattr(worker_group, "send_command", send_and_measure)
    requests = [one_lab.build_request(str(number), one_lab.make_image(9, 9), "?") for number in range(4)]
    answers = {answer.id: answer.text for answer in generate_replies(pair, requests)}
    assert answers == {request.id: pair.detokenizer.decode(one_lab.generate_alone(request)[0]) for request in requests}
    assert max(sizes) < requests[0].clips[0].pixels.nbytes / 4


def test_only_rank_0_gathers_logits(monkeypatch):
    gathered = []
    monkeypatch.setattr(torch.distributed, "gather", lambda columns, parts: gathered.append(parts and len(parts)))
    columns = torch.ones(3, 5)
    assert collectives.Collectives(TensorParallel(1, 2)).gather_columns(columns) is columns
    assert collectives.Collectives(TensorParallel(0, 2)).gather_columns(columns).shape == (3, 10)
    assert gathered == [None, 2]


def test_all_ranks_use_the_smallest_sizes():
    rank_sizes = [memory.EngineSizes(4, 900, 64, 60), memory.EngineSizes(4, 700, 64, 60)]
    assert memory.EngineSizes.take_smallest(rank_sizes) == memory.EngineSizes(4, 700, 64, 60)


def test_a_rank_that_cannot_start_is_an_error_that_names_it(one_lab, monkeypatch):
    monkeypatch.setattr("pipeline.model.engines.torch.worker_group.sys.executable", "/bin/false")
    with pytest.raises(PipelineError, match="rank 1 of the model did not start"):
        open_engine(one_lab, 2)
