"""The engine as its callers see it: refused requests, failures that cost one request, and work that is done once."""

import subprocess
import sys
import time
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from pipeline.errors import ExitCode, JobError
from pipeline.job.spec import Job
from pipeline.model.engine_thread import EngineThread, generate_replies
from pipeline.model.engines.torch import TorchEngineType
from pipeline.model.engines.torch.cache_runs import release_run
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.sampler import sample_tokens
from pipeline.types import Failure, Reply
from tests.model.engines.conftest import Lab, with_and_without_states

pytestmark = pytest.mark.process


@pytest.fixture(params=[False, True], ids=["in-turn", "launch-ahead"])
def engine(one_lab: Lab, request):
    engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=4, kv_tokens=1200)
    engine.can_launch_ahead = request.param  # as on a GPU
    yield engine
    engine.close()


def answer_all(engine: TorchEngine, requests) -> dict[str, Reply | Failure]:
    return {reply.id: reply for reply in generate_replies(engine, requests)}


def is_idle(engine: TorchEngine) -> bool:
    """The whole KV cache but kept prefixes and all slots are free, and no clip is kept."""
    free_runs = engine.scheduler.free_runs
    for run in engine.scheduler.prefixes.kept:
        free_runs = release_run(free_runs, run.start, run.tokens)
    return (
        free_runs == ((0, engine.sizes.kv_tokens),)
        and not engine.vision_cache.clips
        and not engine.scheduler.running
        and len(engine.scheduler.free_slots) == engine.sizes.slots
    )


@with_and_without_states
def test_the_same_seed_gives_the_same_answer_in_any_batch(engine, one_lab):
    sampling = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 16}
    requests = [
        one_lab.build_request(str(seed), one_lab.make_image(3, 3), "say", seed=seed, **sampling) for seed in range(9)
    ]
    together = answer_all(engine, requests)
    alone = {request.id: answer_all(engine, [request])[request.id] for request in requests}
    for name, reply in alone.items():  # the sum behind the mean is in another order
        assert replace(together[name], logprob=None) == replace(reply, logprob=None)
    other = answer_all(engine, [replace(requests[0], sampling=replace(requests[0].sampling, seed=99))])["0"]
    assert other.text != together["0"].text


def test_logprob_is_the_mean_over_the_tokens_of_the_answer(engine, one_lab):
    one_lab.rng = np.random.default_rng(7)  # with this image the model answers no image token
    request = one_lab.build_request("a", one_lab.make_image(2, 3), "what?", max_new_tokens=5)
    reply = answer_all(engine, [request])["a"]
    tokens, _ = one_lab.generate_alone(request)
    ids = torch.tensor([[*request.input_ids, *tokens]])
    with torch.inference_mode():
        after = torch.from_numpy(request.positions).max() + 1 + torch.arange(len(tokens))
        positions = torch.cat([torch.from_numpy(request.positions), after.expand(3, -1)], 1).long()[:, None]
        kinds = (ids == one_lab.family.image_token).int()
        logits = one_lab.load_reference()(
            ids, position_ids=positions, mm_token_type_ids=kinds, **one_lab.build_vision_arguments(request)
        ).logits
    logprobs = logits[0, -len(tokens) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    assert reply.logprob == pytest.approx(logprobs.mean().item(), abs=1e-4)
    assert reply.output_tokens == len(tokens)


def test_a_stop_token_ends_the_answer_and_is_not_in_the_text(engine, one_lab):
    request = one_lab.build_request("a", "hello", max_new_tokens=20)
    tokens, _ = one_lab.generate_alone(request)
    engine.detokenizer = replace(engine.detokenizer, stop_tokens=frozenset({tokens[3]}))
    reply = answer_all(engine, [request])["a"]
    assert (reply.finish, reply.output_tokens) == ("stop", 4)
    assert reply.text == engine.detokenizer.decode(tokens[:3])
    assert answer_all(engine, [one_lab.build_request("b", "hello", max_new_tokens=3)])["b"].finish == "length"


def test_box_tags_are_text_and_control_tokens_are_not(engine, one_lab):
    output = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|><|im_end|><|image_pad|>"
    one_lab.family.tokenizer.encode_special_tokens = False
    ids = one_lab.family.tokenizer.encode(output).ids
    one_lab.family.tokenizer.encode_special_tokens = True
    assert engine.detokenizer.decode(ids) == output.removesuffix("<|im_end|><|image_pad|>")


def test_the_next_step_is_pending_when_a_step_ends(engine, one_lab):
    for name in ("a", "b"):
        engine.submit(one_lab.build_request(name, "hello " + name, max_new_tokens=5))
    engine.step()
    assert [request.output_tokens for request in engine.scheduler.running] == [1, 1]
    assert (engine.pending_step is not None) == engine.can_launch_ahead
    while engine.scheduler.running:
        engine.step()
    assert is_idle(engine)


@with_and_without_states
def test_a_sequence_that_ends_early_changes_no_other(engine, one_lab):
    """A step launched ahead has computed one token more by then."""
    request = one_lab.build_request("a", "hello", max_new_tokens=30)
    tokens, _ = one_lab.generate_alone(request)
    engine.detokenizer = replace(engine.detokenizer, stop_tokens=engine.detokenizer.stop_tokens | {tokens[4]})
    others = [one_lab.build_request(str(number), "hello" + "!" * number, max_new_tokens=30) for number in range(6)]
    answers = answer_all(engine, [others[0], request, *others[1:]])
    assert answers["a"].finish == "stop"
    for other in others:
        expected, _ = one_lab.generate_alone(other)
        cut = expected.index(tokens[4]) + 1 if tokens[4] in expected else len(expected)
        assert answers[other.id].output_tokens == cut
        assert answers[other.id].text == engine.detokenizer.decode(expected[:cut])
    assert is_idle(engine)


def test_thinking_is_separate_and_ends_when_its_budget_is_spent(engine, one_lab):
    think_end = one_lab.family.tokenizer.token_to_id("</think>")
    engine.detokenizer = replace(engine.detokenizer, think_end_token=think_end, stop_tokens=frozenset())
    engine.sequence_builder.detokenizer = engine.detokenizer
    request = one_lab.build_request("a", "hello", max_new_tokens=6, max_thinking_tokens=5)
    plain, _ = one_lab.generate_alone(replace(request, sampling=replace(request.sampling, max_new_tokens=5)))
    reply = answer_all(engine, [request])["a"]
    assert reply.thinking == engine.detokenizer.decode(plain).strip()
    assert reply.output_tokens == 11
    assert reply.text


def test_a_shared_image_is_encoded_once_and_dropped_after_prefill(engine, one_lab):
    picture = one_lab.make_image(4, 4)
    requests = [one_lab.build_request(str(number), picture, "x" * number) for number in range(1, 5)]
    answer_all(engine, requests)
    assert engine.metrics()["patches"] == 64
    assert is_idle(engine)


@with_and_without_states
def test_questions_about_one_picture_compute_it_once(engine, one_lab):
    picture = one_lab.make_image(9, 8)
    requests = [one_lab.build_request(str(number), picture, "why " * number, max_new_tokens=4) for number in range(9)]
    answers = answer_all(engine, requests)
    late = one_lab.build_request("late", picture, "and now?", max_new_tokens=4)
    answers |= answer_all(engine, [late])  # nothing of the picture is left but its keys and values
    for request in (*requests, late):
        assert answers[request.id].text == engine.detokenizer.decode(one_lab.generate_alone(request)[0])
    assert engine.metrics()["patches"] == 4 * 72
    assert engine.metrics()["tokens_copied"] >= 9 * 72
    assert is_idle(engine)


def test_images_of_the_same_size_do_not_share_their_features(engine, one_lab):
    requests = [one_lab.build_request(name, one_lab.make_image(4, 4), "?") for name in ("a", "b")]
    answer_all(engine, requests)
    assert engine.metrics()["patches"] == 2 * 64


def test_no_token_is_computed_without_need(engine, one_lab):
    requests = [
        one_lab.build_request(str(number), one_lab.make_image(1 + number, 3), "?", max_new_tokens=1 + number)
        for number in range(7)
    ]
    answer_all(engine, requests)
    metrics = engine.metrics()
    needed = metrics["prompt_tokens"] + metrics["output_tokens"] - metrics["rows"] - metrics["tokens_copied"]
    wasted = 7 if engine.can_launch_ahead else 0  # one token of each sequence that ends before its budget
    assert needed <= metrics["tokens_computed"] <= needed + wasted


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (
            lambda request: replace(request, input_ids=np.append(request.input_ids[:-1], 10**6).astype(np.int32)),
            "token",
        ),
        (lambda request: replace(request, turns=()), "media"),
        (lambda request: replace(request, positions=request.positions[:, 1:]), "shape"),
        (
            lambda request: replace(request, input_ids=request.input_ids[:0], positions=request.positions[:, :0]),
            "shape",
        ),
    ],
)
def test_a_malformed_request_is_refused_before_anything_is_computed(engine, one_lab, damage, kind):
    good = one_lab.build_request("good", one_lab.make_image(2, 2), "?")
    bad = damage(replace(good, id="bad"))
    answers = answer_all(engine, [bad, good])
    assert answers["bad"].kind == kind
    assert isinstance(answers["good"], Reply)
    assert is_idle(engine)


def test_a_too_long_prompt_is_refused_and_a_long_answer_is_cut_to_the_cache(engine, one_lab):
    answers = answer_all(
        engine,
        [one_lab.build_request("long", "a" * 1300), one_lab.build_request("cut", "a" * 1100, max_new_tokens=500)],
    )
    assert answers["long"].kind == "too_long"
    assert "engine.kv_tokens" in answers["long"].message
    assert answers["cut"].finish in ("length", "stop")


def fail_on_request(engine: TorchEngine, name: str) -> None:
    """The model fails whenever this request is in a batch."""
    step_runner = engine.step_runner

    def failing(batch, *unread):
        if any(sequence.request.id == name for sequence, _ in batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return step_runner(batch, *unread)

    engine.step_runner = failing


@with_and_without_states
def test_a_request_that_breaks_the_model_fails_alone(engine, one_lab):
    requests = [one_lab.build_request(str(number), one_lab.make_image(2, 1 + number), "?") for number in range(9)]
    expected = answer_all(engine, requests)
    fail_on_request(engine, "5")
    answers = answer_all(engine, requests)
    assert answers.pop("5").kind == "model"
    expected.pop("5")
    assert {name: reply.text for name, reply in answers.items()} == {
        name: reply.text for name, reply in expected.items()
    }
    assert is_idle(engine)


@with_and_without_states
def test_a_request_that_breaks_sampling_fails_alone(engine, one_lab, monkeypatch):
    requests = [
        one_lab.build_request(str(number), "x" * number, max_new_tokens=12 + number, seed=number) for number in range(9)
    ]
    expected = answer_all(engine, requests)
    module, calls = sys.modules[TorchEngine.__module__], count()

    def failing(logits, sampling, randoms):
        if any(settings.seed == 5 for settings in sampling) and next(calls) > 4:  # some tokens later
            raise RuntimeError("probability tensor contains nan")
        return sample_tokens(logits, sampling, randoms)

    monkeypatch.setattr(module, "sample_tokens", failing)
    answers = answer_all(engine, requests)
    assert answers.pop("5").kind == "model"
    assert {name: reply.text for name, reply in answers.items()} == {
        name: reply.text for name, reply in expected.items() if name != "5"
    }
    assert is_idle(engine)


def test_an_image_that_breaks_the_vision_tower_fails_only_the_requests_that_show_it(engine, one_lab):
    bad, good = one_lab.make_image(3, 3), one_lab.make_image(3, 3)
    requests = [
        one_lab.build_request("a", bad, "?"),
        one_lab.build_request("b", good, "?"),
        one_lab.build_request("c", good, "or", bad),
    ]
    tower = engine.vision_cache.vision_tower
    encode_patches, bad_patches = tower.encode_patches, cut_patches(engine, bad)

    def fail_on_bad_pixels(patches, grids, **options):
        if any(torch.equal(part, bad_patches) for part in patches.split(36)):
            raise ValueError("bad pixels")
        return encode_patches(patches, grids, **options)

    tower.encode_patches = fail_on_bad_pixels
    answers = answer_all(engine, requests)
    assert [type(answers[name]) for name in "abc"] == [Failure, Reply, Failure]
    assert is_idle(engine)


def cut_patches(engine: TorchEngine, clip) -> torch.Tensor:
    from pipeline.model.engines.torch.vision_encoder import patchify

    return patchify(torch.from_numpy(clip.pixels), (1, 6, 6), engine.vision_cache.vision_config)


@with_and_without_states
def test_out_of_memory_halves_the_limits_and_loses_no_request(engine, one_lab, caplog):
    engine.sequence_builder.reuses_prefixes = False  # else the second time less is computed
    requests = [one_lab.build_request(str(number), one_lab.make_image(5, 5), "?") for number in range(8)]
    expected = answer_all(engine, requests)
    step_runner, encode = engine.step_runner, engine.vision_cache.encode_slices

    def run_within_memory(batch, *unread):
        outputs = step_runner(batch, *unread)
        if sum(count for _, count in batch) > 70:  # only after it wrote keys, values and states
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs

    def encode_within_memory(slices):
        if sum(part.patches for part in slices) > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(slices)

    engine.step_runner, engine.vision_cache.encode_slices = run_within_memory, encode_within_memory
    answers = answer_all(engine, requests)
    assert {name: reply.text for name, reply in answers.items()} == {
        name: reply.text for name, reply in expected.items()
    }
    assert min(engine.limits.prefill_tokens, len(requests[0].input_ids)) <= 70
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_request_too_large_for_the_memory_fails_alone(engine, one_lab):
    step_runner = engine.step_runner

    def run_within_memory(batch, *unread):
        if any(sequence.request.id == "huge" for sequence, _ in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step_runner(batch, *unread)

    engine.step_runner = run_within_memory
    answers = answer_all(
        engine, [one_lab.build_request("small", "hello"), one_lab.build_request("huge", one_lab.make_image(3, 3), "?")]
    )
    assert answers["huge"].kind == "out_of_memory"
    assert isinstance(answers["small"], Reply)


def test_an_engine_thread_shares_the_engine_between_callers(engine, one_lab):
    requests = [one_lab.build_request(str(number), one_lab.make_image(2, 2), "?") for number in range(6)]
    expected = answer_all(engine, requests)
    engine_thread = EngineThread(engine)
    futures = [engine_thread.submit_request(request) for request in requests]
    assert [future.result(30).text for future in futures] == [expected[request.id].text for request in requests]
    engine_thread.close()


def test_a_job_opens_the_engine_with_its_settings(one_lab):
    job = {
        "name": "a",
        "input": {"manifest": "x.parquet"},
        "model": {"weights": str(one_lab.folder), "dtype": "bfloat16", "context": {"max_length": 700}},
        "engine": {"kind": "torch", "slots": 3, "prefill_tokens": 40},
        "output": {"path": "out"},
    }
    engine = TorchEngineType().open(Job.model_validate(job))
    assert (engine.sizes.slots, engine.limits.prefill_tokens) == (3, 40)
    assert engine.step_runner.cache.keys[0].dtype == torch.bfloat16
    assert engine.sequence_builder.family.context_length == 700
    assert isinstance(answer_all(engine, [one_lab.build_request("a", one_lab.make_image(2, 2), "?")])["a"], Reply)
    engine.close()


def test_float16_weights_are_computed_in_float32_where_there_is_no_gpu(one_lab):
    job = {"name": "a", "input": {"manifest": "x.parquet"}, "output": {"path": "out"}}
    weights = {"weights": str(one_lab.folder), "overrides": {"dtype": "float16"}}
    for model, dtype in ({}, torch.float32), ({"dtype": "float16"}, torch.float16):
        engine = TorchEngineType().open(Job.model_validate({**job, "model": weights | model}))
        assert engine.step_runner.cache.keys[0].dtype == dtype
        engine.close()


def test_an_unsupported_attention_is_refused_by_name(one_lab):
    with pytest.raises(JobError, match="flash_attention_2"):
        TorchEngine(one_lab.folder, one_lab.family, device="cpu", attention="flash_attention_2")


HANG = """
import time
from pipeline.watchdog import Watchdog
watchdog = Watchdog(0.2)
with watchdog:
    pass
time.sleep(0.6)
print("idle is not hanging", flush=True)
with watchdog:
    time.sleep(60)
"""


def test_a_step_that_hangs_ends_the_process_and_says_where():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == ExitCode.HANG
    assert time.monotonic() - start < 50
    assert "idle is not hanging" in done.stdout
    assert "took more than 0.2 s" in done.stderr
    assert "Thread" in done.stderr
