"""Log-probabilities of continuations are those of the reference model, alone and in any mix."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch

from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.continuation_scorer import plan_branches
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.types import Continuation, Failure, Reply
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES, with_and_without_states

pytestmark = pytest.mark.process
EVERY_FAMILY = pytest.mark.parametrize("lab", FAMILIES + HYBRID_FAMILIES, indirect=True)
ONE_TOKEN = [Continuation((token,), 0, "") for token in (65, 66, 70)]
MANY_TOKENS = [  # one begins another, two share a beginning, one is partly given, one is long
    *(Continuation(tokens, 0, "") for tokens in ((65, 66), (65, 66, 67), (65, 70, 71, 72), (80,))),
    Continuation((90, 91, 92, 93), 3, ""),
    Continuation(tuple(range(65, 85)), 0, ""),
]


def build_requests(lab, continuations):
    requests = [
        lab.build_request("text", "the cat"),
        lab.build_request("picture", lab.make_image(7, 5), "what is it?"),
        lab.build_request("two", lab.make_image(3, 8), "and", lab.make_image(2, 2), "differ how?"),
        lab.build_request("film", lab.make_video(4, 4, 4), "what happens?"),
        lab.build_request("long", "a" * 150),
    ]
    return [replace(request, continuations=tuple(continuations)) for request in requests]


@torch.inference_mode()
def score_alone(lab, request):
    """What the reference model gives each continuation in a pass of its own."""
    logprobs = []
    for part in request.continuations:
        prompt = torch.from_numpy(request.input_ids).long()
        ids = torch.cat([prompt, torch.tensor(part.token_ids)])[None]
        positions = torch.from_numpy(request.positions).long()
        added = positions.max() + 1 + torch.arange(len(part.token_ids))
        positions = torch.cat([positions, added.expand(len(positions), -1)], 1)[:, None]
        kinds = (ids == lab.family.image_token).int() + 2 * (ids == lab.family.video_token).int()
        model, media = lab.load_reference(), lab.build_vision_arguments(request)
        logits = model(ids, position_ids=positions, mm_token_type_ids=kinds, **media).logits[0]
        lines = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        own = lines[torch.arange(len(part.token_ids)), torch.tensor(part.token_ids)]
        logprobs.append(own[part.scored_from :].sum().item())
    return logprobs


def open_engine(lab, **options):
    sizes = {"slots": 3, "prefill_tokens": 4096, "patches": 4096, "kv_tokens": 2000}
    return TorchEngine(lab.folder, lab.family, device="cpu", **sizes | options)


def score(engine, requests):
    return {reply.id: list(reply.continuation_logprobs) for reply in generate_replies(engine, requests)}


@EVERY_FAMILY
def test_every_family_gives_the_log_probabilities_of_the_reference(lab):
    requests = build_requests(lab, MANY_TOKENS) + [
        replace(request, id=f"one {request.id}") for request in build_requests(lab, ONE_TOKEN)
    ]
    engine, split = open_engine(lab), open_engine(lab, prefill_tokens=64, slots=8)
    split.can_launch_ahead, split.sequence_builder.joined_branch_tokens = True, 0  # as on a GPU
    expected = {request.id: pytest.approx(score_alone(lab, request), abs=1e-4) for request in requests}
    assert score(engine, requests) == expected
    for request in requests:
        assert score(engine, [request]) == {request.id: expected[request.id]}
    assert score(split, requests) == expected
    assert not engine.vision_cache.features_by_clip
    engine.close()
    split.close()


@with_and_without_states
def test_two_ranks_give_the_log_probabilities_of_one(one_lab):
    requests = build_requests(one_lab, MANY_TOKENS)
    alone, divided = open_engine(one_lab), open_engine(one_lab, tensor_parallel=2, prefill_tokens=64)
    expected = score(alone, requests)
    assert score(divided, requests) == {name: pytest.approx(values, abs=1e-4) for name, values in expected.items()}
    alone.close()
    divided.close()


@with_and_without_states
def test_rows_that_write_share_steps_with_rows_that_are_scored(one_lab):
    scored = build_requests(one_lab, MANY_TOKENS)
    written = [one_lab.build_request(f"w{number}", "x" * (9 * number + 1)) for number in range(4)]
    engine = open_engine(one_lab)
    expected = score(engine, scored)
    texts = {reply.id: reply.text for reply in generate_replies(engine, written)}
    mixed = [request for pair in zip(scored, written, strict=False) for request in pair]
    replies = {reply.id: reply for reply in generate_replies(engine, mixed)}
    for request in mixed:
        reply = replies[request.id]
        if request.continuations:
            assert list(reply.continuation_logprobs) == pytest.approx(expected[request.id], abs=1e-4)
        else:
            assert reply.text == texts[request.id]
    engine.close()


@with_and_without_states
@pytest.mark.parametrize("launch_ahead", [False, True])
def test_out_of_memory_and_a_bad_neighbour_change_no_score(one_lab, launch_ahead):
    requests = build_requests(one_lab, MANY_TOKENS)
    engine = open_engine(one_lab, slots=64)
    expected = score(engine, requests)
    engine.can_launch_ahead, step_runner, calls = launch_ahead, engine.step_runner, count()

    def failing(batch, *unread):
        outputs = step_runner(batch, *unread)
        if any(sequence.request.id == "bad" and sequence.is_in_branch for sequence, _ in batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        if next(calls) in (0, 3, 4):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs

    engine.step_runner = failing
    bad = replace(one_lab.build_request("bad", "hello " * 9), continuations=tuple(MANY_TOKENS))
    replies = {reply.id: reply for reply in generate_replies(engine, [*requests[:2], bad, *requests[2:]])}
    assert isinstance(replies.pop("bad"), Failure)
    assert {name: pytest.approx(list(reply.continuation_logprobs), abs=1e-4) for name, reply in replies.items()} == (
        expected
    )
    assert engine.limits.is_halved
    engine.close()


def test_one_pass_answers_choices_of_one_token_and_many_rows_share_it(one_lab):
    engine = open_engine(one_lab, slots=2)
    requests = [
        replace(one_lab.build_request(str(number), "x" * number), continuations=tuple(ONE_TOKEN)) for number in range(9)
    ]
    for request in requests:
        engine.submit(request)
    assert len(engine.step()) == 9
    assert engine.metrics()["steps"] == 1
    assert engine.metrics()["output_tokens"] == 0
    assert engine.metrics()["tokens_computed"] == sum(len(request.input_ids) for request in requests)
    engine.close()


def test_branches_share_a_step_as_far_as_they_fit_behind_the_prompt(one_lab):
    parts = tuple(Continuation((token, token + 1, token), 0, "") for token in range(65, 75))
    request = replace(one_lab.build_request("a", "x"), continuations=parts)
    prompt, steps, scores = len(request.input_ids), [], []
    for kv_tokens in (prompt + 20, prompt + 7, prompt + 3):
        engine = open_engine(one_lab, kv_tokens=kv_tokens)
        scores.append(score(engine, [request])["a"])
        steps.append(engine.metrics()["steps"])
        engine.close()
    assert steps == [2, 5, 11]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert scores[2] == pytest.approx(scores[0], abs=1e-4)


def test_continuations_that_do_not_fit_are_refused(one_lab):
    engine = open_engine(one_lab, kv_tokens=100)
    fits = replace(one_lab.build_request("fits", "x"), continuations=tuple(ONE_TOKEN))
    long = replace(fits, id="long", continuations=(*ONE_TOKEN, Continuation((65,) * 90, 0, "")))
    unknown = replace(fits, id="unknown", continuations=(*ONE_TOKEN, Continuation((10**6,), 0, "")))
    replies = {reply.id: reply for reply in generate_replies(engine, [long, fits, unknown])}
    assert isinstance(replies["fits"], Reply)
    assert replies["long"].kind == "too_long"
    assert replies["unknown"].kind == "token"
    engine.close()


def test_logits_that_are_not_numbers_fail_the_row_alone(one_lab):
    engine = open_engine(one_lab)
    requests, step_runner = build_requests(one_lab, ONE_TOKEN), engine.step_runner
    expected = score(engine, requests)

    @torch.inference_mode()
    def overflow(batch, *unread):
        outputs, place = step_runner(batch, *unread), 0
        for sequence, tokens in batch:
            count = len(sequence.list_targets(tokens).tokens)
            if sequence.request.id == "film":
                outputs.scores[place : place + count] = torch.nan
            place += count
        return outputs

    engine.step_runner = overflow
    replies = {reply.id: reply for reply in generate_replies(engine, requests)}
    assert "not numbers" in replies.pop("film").message
    assert {name: list(reply.continuation_logprobs) for name, reply in replies.items()} == {
        name: pytest.approx(values, abs=1e-4) for name, values in expected.items() if name != "film"
    }
    engine.close()


def test_a_beginning_of_a_branch_is_computed_with_it():
    branches = plan_branches(MANY_TOKENS[:4])
    assert [branch.token_ids for branch in branches] == [(), (65, 70, 71), (65, 66)]
    assert plan_branches(ONE_TOKEN)[0].token_ids == ()
    assert len(plan_branches(ONE_TOKEN)) == 1


def test_rows_are_taken_while_less_than_two_steps_of_tokens_wait(one_lab):
    """However many rows that is, and again as soon as some of them are admitted."""
    engine = open_engine(one_lab, prefill_tokens=256, slots=2, kv_tokens=200)
    request = build_requests(one_lab, ONE_TOKEN)[0]
    taken = 0
    while engine.has_room():
        engine.submit(replace(request, id=str(taken)))
        taken += 1
    longest = engine.scheduler.waiting[0].max_tokens
    assert taken == -(-2 * 256 // longest) > 2 * 2
    for number in range(taken, taken + 40):
        engine.submit(replace(request, id=str(number)))
    replies, rooms = 0, {}
    while replies < taken + 40:
        replies += len(engine.step())
        rooms[len(engine.scheduler.waiting)] = engine.has_room()
    few, enough = range(4, -(-2 * 256 // longest)), range(-(-2 * 256 // longest), taken + 40)
    assert {rooms[count] for count in few if count in rooms} == {True}
    assert {rooms[count] for count in enough if count in rooms} == {False}
    engine.close()
