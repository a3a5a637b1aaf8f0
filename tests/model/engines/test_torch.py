"""The engine as its callers see it: who is refused, what survives a failure, what is computed once."""

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
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.sampler import sample_tokens
from pipeline.types import Failure, Reply
from tests.model.engines.conftest import Lab


@pytest.fixture(params=[False, True], ids=["", "ahead"])
def engine(one_lab: Lab, request):
    made = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=4, kv_tokens=1200)
    made.can_launch_ahead = request.param  # as on a GPU
    yield made
    made.close()


def answered(engine: TorchEngine, requests) -> dict[str, Reply | Failure]:
    return {reply.id: reply for reply in generate_replies(engine, requests)}


def idle(engine: TorchEngine) -> bool:
    """Every run of the cache came back, and no picture is kept."""
    return (
        engine.scheduler.free_runs == ((0, engine.sizes.kv_tokens),)
        and not engine.vision_cache.clips
        and not engine.scheduler.running
    )


def test_the_same_seed_gives_the_same_answer_whoever_else_is_there(engine, one_lab):
    how = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 16}
    rows = [one_lab.ask(str(seed), one_lab.picture(3, 3), "say", seed=seed, **how) for seed in range(9)]
    together = answered(engine, rows)
    alone = {row.id: answered(engine, [row])[row.id] for row in rows}
    for name, reply in alone.items():  # the mean of logarithms is summed in another order
        assert replace(together[name], logprob=None) == replace(reply, logprob=None)
    other = answered(engine, [replace(rows[0], sampling=replace(rows[0].sampling, seed=99))])["0"]
    assert other.text != together["0"].text


def test_the_log_probability_is_the_mean_over_the_answers_tokens(engine, one_lab):
    one_lab.rng = np.random.default_rng(7)  # a picture of which the model does not say an image token
    row = one_lab.ask("a", one_lab.picture(2, 3), "what?", max_new_tokens=5)
    reply = answered(engine, [row])["a"]
    tokens, _ = one_lab.generate(row)
    ids = torch.tensor([[*row.input_ids, *tokens]])
    with torch.inference_mode():
        after = torch.from_numpy(row.positions).max() + 1 + torch.arange(len(tokens))
        positions = torch.cat([torch.from_numpy(row.positions), after.expand(3, -1)], 1).long()[:, None]
        kinds = (ids == one_lab.family.image_token).int()
        logits = one_lab.reference()(ids, position_ids=positions, mm_token_type_ids=kinds, **one_lab.vision(row)).logits
    said = logits[0, -len(tokens) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])
    assert reply.logprob == pytest.approx(said.mean().item(), abs=1e-4)
    assert reply.output_tokens == len(tokens)


def test_a_stop_token_ends_the_answer_and_is_not_in_the_text(engine, one_lab):
    row = one_lab.ask("a", "hello", max_new_tokens=20)
    tokens, _ = one_lab.generate(row)
    engine.detokenizer = replace(engine.detokenizer, stop_tokens=frozenset({tokens[3]}))
    reply = answered(engine, [row])["a"]
    assert (reply.finish, reply.output_tokens) == ("stop", 4)
    assert reply.text == engine.detokenizer.decode(tokens[:3])
    assert answered(engine, [one_lab.ask("b", "hello", max_new_tokens=3)])["b"].finish == "length"


def test_box_tags_are_text_and_control_tokens_are_not(engine, one_lab):
    said = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|><|im_end|><|image_pad|>"
    one_lab.family.tokenizer.encode_special_tokens = False
    ids = one_lab.family.tokenizer.encode(said).ids
    one_lab.family.tokenizer.encode_special_tokens = True
    assert engine.detokenizer.decode(ids) == said.removesuffix("<|im_end|><|image_pad|>")


def test_the_next_pass_is_under_way_when_a_step_ends(engine, one_lab):
    for name in ("a", "b"):
        engine.submit(one_lab.ask(name, "hello " + name, max_new_tokens=5))
    engine.step()
    assert [row.output_tokens for row in engine.scheduler.running] == [1, 1]
    assert (engine.pending_step is not None) == engine.can_launch_ahead
    while engine.scheduler.running:
        engine.step()
    assert idle(engine)


def test_a_row_that_ends_early_takes_nobody_with_it(engine, one_lab):
    """Ahead of the host its next token is computed before anyone knows that there is none."""
    row = one_lab.ask("a", "hello", max_new_tokens=30)
    tokens, _ = one_lab.generate(row)
    engine.detokenizer = replace(engine.detokenizer, stop_tokens=engine.detokenizer.stop_tokens | {tokens[4]})
    others = [one_lab.ask(str(number), "hello" + "!" * number, max_new_tokens=30) for number in range(6)]
    answers = answered(engine, [others[0], row, *others[1:]])
    assert answers["a"].finish == "stop"
    for other in others:
        expected, _ = one_lab.generate(other)
        cut = expected.index(tokens[4]) + 1 if tokens[4] in expected else len(expected)
        assert answers[other.id].output_tokens == cut
        assert answers[other.id].text == engine.detokenizer.decode(expected[:cut])
    assert idle(engine)


def test_thinking_is_kept_apart_and_ended_when_its_budget_is_spent(engine, one_lab):
    think_end = one_lab.family.tokenizer.token_to_id("</think>")
    engine.detokenizer = replace(engine.detokenizer, think_end_token=think_end, stop_tokens=frozenset())
    engine.sequence_builder.detokenizer = engine.detokenizer
    row = one_lab.ask("a", "hello", max_new_tokens=6, max_thinking_tokens=5)
    plain, _ = one_lab.generate(replace(row, sampling=replace(row.sampling, max_new_tokens=5)))
    reply = answered(engine, [row])["a"]
    assert reply.thinking == engine.detokenizer.decode(plain).strip()
    assert reply.output_tokens == 11
    assert reply.text


def test_a_picture_that_several_rows_show_is_encoded_once_and_dropped_when_read(engine, one_lab):
    picture = one_lab.picture(4, 4)
    rows = [one_lab.ask(str(number), picture, "x" * number) for number in range(1, 5)]
    answered(engine, rows)
    assert engine.metrics()["patches"] == 64
    assert idle(engine)


def test_nothing_is_computed_that_is_not_needed(engine, one_lab):
    rows = [
        one_lab.ask(str(number), one_lab.picture(1 + number, 3), "?", max_new_tokens=1 + number) for number in range(7)
    ]
    answered(engine, rows)
    seen = engine.metrics()
    needed = seen["prompt_tokens"] + seen["output_tokens"] - seen["rows"]
    assert needed <= seen["tokens_computed"] <= needed + (7 if engine.can_launch_ahead else 0)  # a row that ends early


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda row: replace(row, input_ids=np.append(row.input_ids[:-1], 10**6).astype(np.int32)), "token"),
        (lambda row: replace(row, turns=()), "media"),
        (lambda row: replace(row, positions=row.positions[:, 1:]), "shape"),
        (lambda row: replace(row, input_ids=row.input_ids[:0], positions=row.positions[:, :0]), "shape"),
    ],
)
def test_a_request_that_cannot_be_right_is_refused_before_it_costs_anything(engine, one_lab, spoil, kind):
    bad, good = spoil(one_lab.ask("bad", one_lab.picture(2, 2), "?")), one_lab.ask("good", one_lab.picture(2, 2), "?")
    answers = answered(engine, [bad, good])
    assert answers["bad"].kind == kind
    assert isinstance(answers["good"], Reply)
    assert idle(engine)


def test_a_prompt_longer_than_the_cache_says_so_and_a_long_answer_is_cut_to_the_room_there_is(engine, one_lab):
    answers = answered(engine, [one_lab.ask("long", "a" * 1300), one_lab.ask("cut", "a" * 1100, max_new_tokens=500)])
    assert answers["long"].kind == "too_long"
    assert "engine.kv_tokens" in answers["long"].message
    assert answers["cut"].finish in ("length", "stop")


def poison(engine: TorchEngine, name: str) -> None:
    """The model fails whenever this row is in a batch."""
    forward = engine.step_runner

    def failing(work, *fed):
        if any(row.request.id == name for row, _ in work):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return forward(work, *fed)

    engine.step_runner = failing


def test_a_poisonous_row_fails_alone_and_everyone_else_is_answered_as_ever(engine, one_lab):
    rows = [one_lab.ask(str(number), one_lab.picture(2, 1 + number), "?") for number in range(9)]
    expected = answered(engine, rows)
    poison(engine, "5")
    answers = answered(engine, rows)
    assert answers.pop("5").kind == "model"
    expected.pop("5")
    assert {name: reply.text for name, reply in answers.items()} == {
        name: reply.text for name, reply in expected.items()
    }
    assert idle(engine)


def test_a_row_whose_logits_are_of_no_use_fails_alone_though_its_pass_is_over(engine, one_lab, monkeypatch):
    rows = [one_lab.ask(str(number), "x" * number, max_new_tokens=12 + number, seed=number) for number in range(9)]
    expected = answered(engine, rows)
    module, seen = sys.modules[TorchEngine.__module__], count()

    def failing(logits, sampling, randoms):
        if any(how.seed == 5 for how in sampling) and next(seen) > 4:  # some tokens later
            raise RuntimeError("probability tensor contains nan")
        return sample_tokens(logits, sampling, randoms)

    monkeypatch.setattr(module, "sample_tokens", failing)
    answers = answered(engine, rows)
    assert answers.pop("5").kind == "model"
    assert {name: reply.text for name, reply in answers.items()} == {
        name: reply.text for name, reply in expected.items() if name != "5"
    }
    assert idle(engine)


def test_a_picture_that_breaks_the_tower_fails_the_rows_that_show_it(engine, one_lab):
    bad, good = one_lab.picture(3, 3), one_lab.picture(3, 3)
    rows = [one_lab.ask("a", bad, "?"), one_lab.ask("b", good, "?"), one_lab.ask("c", good, "or", bad)]
    tower = engine.vision_cache.vision_tower

    def failing(patches, **layout):
        broken = torch.equal(patches[:4], torch.cat([engine_patches(engine, bad)])[:4])
        if any(torch.equal(part, engine_patches(engine, bad)) for part in patches.split(36)):
            raise ValueError(f"bad pixels {broken}")
        return tower(patches, **layout)

    class Tower:
        config, dtype = tower.config, tower.dtype
        parameters = staticmethod(tower.parameters)

        def __call__(self, patches, **layout):
            return failing(patches, **layout)

    engine.vision_cache.vision_tower = Tower()
    answers = answered(engine, rows)
    assert [type(answers[name]) for name in "abc"] == [Failure, Reply, Failure]
    assert idle(engine)


def engine_patches(engine: TorchEngine, clip) -> torch.Tensor:
    from pipeline.model.engines.torch.vision import patchify

    return patchify(torch.from_numpy(clip.pixels), (1, 6, 6), engine.vision_cache.vision_config)


def test_running_out_of_memory_halves_the_budgets_and_loses_no_row(engine, one_lab, caplog):
    rows = [one_lab.ask(str(number), one_lab.picture(5, 5), "?") for number in range(8)]
    expected = answered(engine, rows)
    forward, encode = engine.step_runner, engine.vision_cache.encode_slices

    def small(work, *fed):
        if sum(count for _, count in work) > 70:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(work, *fed)

    def narrow(pieces):
        if sum(piece.patches for piece in pieces) > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pieces)

    engine.step_runner, engine.vision_cache.encode_slices = small, narrow
    answers = answered(engine, rows)
    assert {name: reply.text for name, reply in answers.items()} == {
        name: reply.text for name, reply in expected.items()
    }
    assert engine.limits.prefill_tokens <= 70
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_row_that_fits_in_no_memory_fails_alone(engine, one_lab):
    forward = engine.step_runner

    def small(work, *fed):
        if any(row.request.id == "huge" for row, _ in work):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(work, *fed)

    engine.step_runner = small
    answers = answered(engine, [one_lab.ask("small", "hello"), one_lab.ask("huge", one_lab.picture(3, 3), "?")])
    assert answers["huge"].kind == "out_of_memory"
    assert isinstance(answers["small"], Reply)


def test_a_desk_shares_the_engine_between_callers(engine, one_lab):
    rows = [one_lab.ask(str(number), one_lab.picture(2, 2), "?") for number in range(6)]
    expected = answered(engine, rows)
    desk = EngineThread(engine)
    futures = [desk.submit_request(row) for row in rows]
    assert [future.result(30).text for future in futures] == [expected[row.id].text for row in rows]
    desk.close()


def test_a_job_opens_the_engine_with_its_settings(one_lab):
    said = {
        "name": "a",
        "input": {"manifest": "x.parquet"},
        "model": {"weights": str(one_lab.folder), "dtype": "bfloat16", "context": {"max_length": 700}},
        "engine": {"kind": "torch", "slots": 3, "prefill_tokens": 40},
        "output": {"path": "out"},
    }
    engine = TorchEngineType().open(Job.model_validate(said))
    assert (engine.sizes.slots, engine.limits.prefill_tokens) == (3, 40)
    assert engine.step_runner.cache.keys.dtype == torch.bfloat16
    assert engine.sequence_builder.family.context_length == 700
    assert isinstance(answered(engine, [one_lab.ask("a", one_lab.picture(2, 2), "?")])["a"], Reply)
    engine.close()


def test_float16_weights_are_computed_in_float32_where_there_is_no_gpu(one_lab):
    said = {"name": "a", "input": {"manifest": "x.parquet"}, "output": {"path": "out"}}
    weights = {"weights": str(one_lab.folder), "overrides": {"dtype": "float16"}}
    for asked, used in ({}, torch.float32), ({"dtype": "float16"}, torch.float16):
        engine = TorchEngineType().open(Job.model_validate({**said, "model": weights | asked}))
        assert engine.step_runner.cache.keys.dtype == used
        engine.close()


def test_an_attention_that_is_not_there_is_refused_by_name(one_lab):
    with pytest.raises(JobError, match="flash_attention_2"):
        TorchEngine(one_lab.folder, one_lab.family, device="cpu", attention="flash_attention_2")


HANG = """
import time
from pipeline.watchdog import Watchdog
dog = Watchdog(0.2)
with dog:
    pass
time.sleep(0.6)
print("idle is not hanging", flush=True)
with dog:
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
