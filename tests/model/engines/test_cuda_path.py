"""The code path of a GPU, on a CPU: the flash kernel and graph capture are replaced by their definitions."""

from dataclasses import replace

import pytest
from torch._dynamo.utils import counters

from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import attention, cuda_graphs
from pipeline.model.engines.torch.engine import TorchEngine
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES, Lab, needs_compiler, with_and_without_states
from tests.model.engines.gpu_stand_ins import attend_by_definition, stand_in_for_gpu

pytestmark = pytest.mark.process


@pytest.fixture
def gpu_stand_ins(monkeypatch):
    stand_in_for_gpu(monkeypatch)


@pytest.mark.parametrize("lab", FAMILIES + HYBRID_FAMILIES, indirect=True)
def test_flash_and_graphs_answer_as_generate_does(lab: Lab, gpu_stand_ins):
    requests = [
        lab.build_request("picture", lab.make_image(5, 6), "what is it?"),
        lab.build_request("film", lab.make_video(3, 3, 2), "and?", max_new_tokens=20),
        lab.build_request("text", "hello"),
        lab.build_request("two", lab.make_image(2, 2), "or", lab.make_image(4, 2), max_new_tokens=3),
        lab.build_request("late", lab.make_image(3, 3), "?"),
    ]
    engine = TorchEngine(lab.folder, lab.family, device="cpu", slots=3, prefill_tokens=25)
    assert engine.can_launch_ahead
    texts = {answer.id: answer.text for answer in generate_replies(engine, requests)}
    assert texts == {request.id: engine.detokenizer.decode(lab.generate_alone(request)[0]) for request in requests}
    assert {batch_size for batch_size, _ in engine.step_runner.graphs.captured_graphs} <= {1, 2, 3}
    assert engine.step_runner.graphs.captured_graphs
    engine.close()


@with_and_without_states
def test_the_padding_of_a_graph_changes_no_sequence(one_lab: Lab, gpu_stand_ins):
    engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=7)
    requests = [one_lab.build_request(str(number), "x" * number, max_new_tokens=40 - 6 * number) for number in range(6)]
    texts = {answer.id: answer.text for answer in generate_replies(engine, requests)}
    assert texts == {request.id: engine.detokenizer.decode(one_lab.generate_alone(request)[0]) for request in requests}
    engine.close()


@with_and_without_states
@pytest.mark.parametrize("prefill_tokens", [1, 40])
def test_guided_rows_take_forced_tokens_one_by_one_in_graphs(one_lab: Lab, gpu_stand_ins, prefill_tokens):
    schema = '{"type":"object","properties":{"label":{"enum":["cat","dog"]},"count":{"type":"integer"}},'
    schema += '"required":["label","count"],"additionalProperties":false}'
    requests = [one_lab.build_request("free", "hello", max_new_tokens=30)]
    for number in range(3):
        request = one_lab.build_request(str(number), "x" * number, max_new_tokens=40, temperature=1.0, seed=number)
        requests.append(replace(request, schema_text=schema))
    texts, shares = [], []
    for options in ({"graphs": False}, {"prefill_tokens": prefill_tokens}):
        engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=4, **options)
        texts.append({answer.id: answer.text for answer in generate_replies(engine, requests)})
        shares.append(engine.metrics()["graph_steps"] / engine.metrics()["steps"])
        engine.close()
    assert texts[0] == texts[1]
    assert shares[0] == 0
    assert prefill_tokens == 1 or shares[1] > 0.8


def test_a_failed_capture_is_said_once_and_the_engine_goes_on(one_lab: Lab, gpu_stand_ins, monkeypatch, caplog):
    def fail_to_capture(compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs.DecodeGraphs.__init__, "__kwdefaults__", {"capture": fail_to_capture})
    engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=4)
    requests = [one_lab.build_request(str(number), "x" * number) for number in range(6)]
    texts = {answer.id: answer.text for answer in generate_replies(engine, requests)}
    assert texts == {request.id: engine.detokenizer.decode(one_lab.generate_alone(request)[0]) for request in requests}
    assert ["capture failed" in record.message for record in caplog.records] == [True]
    assert engine.limits.max_sequences == 4
    engine.close()


def test_tokens_that_decode_have_a_flash_call_of_their_own(one_lab: Lab, gpu_stand_ins, monkeypatch):
    calls = []

    def attend_and_record(q, k, v, offsets, max_lengths, **options):
        calls.append((len(q), max_lengths[0]))
        return attend_by_definition(q, k, v, offsets, max_lengths, **options)

    monkeypatch.setattr(attention, "flash_attention_varlen", attend_and_record)
    engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=4, graphs=False, reuse_prefixes=False)
    for name in ("a", "b"):
        engine.submit(one_lab.build_request(name, "hello"))
    engine.step()
    calls.clear()
    late = one_lab.build_request("late", "hello, late one")
    engine.submit(late)
    engine.step()
    assert len(calls) >= 3
    assert {length for _, length in calls} == {1, len(late.input_ids)}
    assert (2, 1) in calls  # both rows that decode, in one call
    engine.close()


COMPILED = [
    "qwen3_vl",
    *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe", "qwen3_5")),
]


@needs_compiler
@pytest.mark.parametrize("lab", COMPILED, indirect=True)
def test_compiled_layers_answer_as_generate_does(lab: Lab, gpu_stand_ins):
    """The numbers of tokens and of patches are symbolic: other sizes compile nothing anew."""
    engine = TorchEngine(lab.folder, lab.family, device="cpu", slots=3, prefill_tokens=25, compile=True)
    compiled = []
    for size in (2, 3):
        requests = [
            lab.build_request("picture", lab.make_image(2 + size, 3 * size), "what is it?"),
            lab.build_request("film", lab.make_video(3, size, 4), "and?" * size, max_new_tokens=10 * size),
            lab.build_request("text", "hello" * size),
            lab.build_request("two", lab.make_image(size, 2), "or", lab.make_image(4, size), max_new_tokens=3),
        ]
        texts = {answer.id: answer.text for answer in generate_replies(engine, requests)}
        assert texts == {request.id: engine.detokenizer.decode(lab.generate_alone(request)[0]) for request in requests}
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[0] == compiled[1] > 0
    engine.close()
