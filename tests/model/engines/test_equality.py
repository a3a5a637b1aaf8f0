"""Greedy answers of the engine equal those of `generate` on each request alone, in any mix."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.scheduler import ExpectedAnswer, select_sampled
from pipeline.types import Clip
from tests.model.engines.conftest import FAMILIES, GAP, HYBRID_FAMILIES, Lab

pytestmark = [pytest.mark.process, pytest.mark.parametrize("lab", FAMILIES + HYBRID_FAMILIES, indirect=True)]

MIXES = st.permutations(range(10)).flatmap(lambda order: st.integers(1, 10).map(lambda count: order[:count]))


@pytest.fixture(scope="module")
def requests(lab: Lab):
    same = lab.make_image(4, 3)
    long = lab.make_video(9, 3, 2)  # an odd number of frames, and more of them than any side has tokens
    return [
        lab.build_request("text", "the cat"),
        lab.build_request("picture", lab.make_image(7, 5), "what is it?", max_new_tokens=20),
        lab.build_request("same", same, "who?"),
        lab.build_request("same-again", same, "where?"),
        lab.build_request("two", lab.make_image(3, 8), "and", lab.make_image(2, 2), "differ how?"),
        lab.build_request("film", lab.make_video(4, 4, 4), "what happens?"),
        lab.build_request("long-film", long, "and then?", max_new_tokens=16),
        lab.build_request("both", lab.make_video(3, 2, 3), "like", lab.make_image(5, 2), "?"),
        lab.build_request("one-token", lab.make_image(4, 4), "yes or no?", max_new_tokens=1),
        lab.build_request("long", "a" * 150, max_new_tokens=30),
    ]


@pytest.fixture(scope="module")
def expected(lab: Lab, requests):
    return {request.id: lab.generate_alone(request) for request in requests}


@given(
    mix=MIXES,
    slots=st.sampled_from([1, 2, 3, 5, 64]),
    prefill=st.sampled_from([7, 50, 4096]),
    patches=st.sampled_from([1, 60, 4096]),
    launch_ahead=st.booleans(),
    fails_at=st.sampled_from([(), (), (0, 3), (5,)]),
    has_bad_neighbour=st.booleans(),
    first_guess=st.sampled_from([1, 3, 256]),
)
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_answers_equal_generate_for_any_mix_order_and_size(
    lab: Lab, requests, expected, mix, slots, prefill, patches, launch_ahead, fails_at, has_bad_neighbour, first_guess
):
    engine = TorchEngine(
        lab.folder, lab.family, device="cpu", slots=slots, prefill_tokens=prefill, patches=patches, kv_tokens=900
    )
    engine.can_launch_ahead = launch_ahead  # as on a GPU
    engine.scheduler.expected_answer = ExpectedAnswer(first_guess)
    break_steps(engine, fails_at)
    chosen = [requests[index] for index in mix]
    if has_bad_neighbour:
        chosen.insert(len(chosen) // 2, lab.build_request("bad", "hello " * 9))
    tokens_by_request = generate_tokens(engine, chosen)
    engine.close()
    assert tokens_by_request.keys() == {requests[index].id for index in mix}
    check_tokens(tokens_by_request, expected)


def check_tokens(tokens_by_request, expected) -> None:
    for name, tokens in tokens_by_request.items():
        reference, gaps = expected[name]
        differ = [at for at, (ours, theirs) in enumerate(zip(tokens, reference, strict=False)) if ours != theirs]
        assert (not differ and len(tokens) == len(reference)) or gaps[differ[0]] < GAP, name


@pytest.mark.parametrize("launch_ahead", [False, True])
def test_answers_that_outgrow_their_runs_equal_generate(lab: Lab, launch_ahead):
    """Runs move, and some are lost: their pictures are encoded again."""
    rows = [lab.build_request(str(n), lab.make_image(4, 3), "what " * n, max_new_tokens=24) for n in range(5)]
    kv_tokens = 3 * (len(rows[-1].input_ids) + 24)
    engine = TorchEngine(lab.folder, lab.family, device="cpu", kv_tokens=kv_tokens, reuse_prefixes=False)
    engine.can_launch_ahead = launch_ahead
    engine.scheduler.expected_answer = ExpectedAnswer(1)
    check_tokens(generate_tokens(engine, rows), {row.id: lab.generate_alone(row) for row in rows})
    counts = engine.metrics()
    assert counts["moved_runs"] > 0
    assert counts["displaced_runs"] > 0
    assert counts["patches"] > 5 * 48
    assert not engine.vision_cache.clips
    engine.close()


@pytest.fixture(scope="module")
def related(lab: Lab):
    """Rows with the same examples, and rows about the same picture or film."""
    examples = (lab.make_image(4, 4), "a cat sits on a mat", lab.make_image(3, 5), "a dog runs in the park", "now: ")
    picture, film = lab.make_image(9, 8), lab.make_video(5, 4, 4)
    asked = [("who?",), ("where?", lab.make_image(2, 2)), ("why not?" * 9,), ("when?",)]
    return [
        lab.build_request(f"{name} {number}", *parts, *question, max_new_tokens=3 + number)
        for name, parts in (
            ("examples", (*examples, lab.make_image(4, 3))),
            ("picture", (picture,)),
            ("film", (film,)),
            ("other", examples[:3]),
        )
        for number, question in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def expected_of_related(lab: Lab, related):
    return {request.id: lab.generate_alone(request) for request in related}


@given(
    order=st.permutations(range(16)),
    slots=st.sampled_from([1, 2, 5, 64]),
    prefill=st.sampled_from([50, 4096]),
    kv_tokens=st.sampled_from([450, 3000]),
    launch_ahead=st.booleans(),
    fails_at=st.sampled_from([(), (0, 3), (5,)]),
    bad_row=st.sampled_from([None, 0, 5]),
    first_guess=st.sampled_from([1, 256]),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_answers_equal_generate_where_rows_share_prefixes(
    lab: Lab,
    related,
    expected_of_related,
    order,
    slots,
    prefill,
    kv_tokens,
    launch_ahead,
    fails_at,
    bad_row,
    first_guess,
):
    sizes = {"slots": slots, "prefill_tokens": prefill, "kv_tokens": kv_tokens}
    engine = TorchEngine(lab.folder, lab.family, device="cpu", **sizes)
    engine.can_launch_ahead = launch_ahead
    engine.scheduler.expected_answer = ExpectedAnswer(first_guess)
    break_steps(engine, fails_at)
    chosen = [related[index] for index in order]
    if bad_row is not None:
        chosen.insert(0, replace(related[bad_row], id="bad"))
    tokens_by_request = generate_tokens(engine, chosen)
    copied, patches = engine.metrics()["tokens_copied"], engine.metrics()["patches"]
    engine.close()
    assert tokens_by_request.keys() == expected_of_related.keys()
    check_tokens(tokens_by_request, expected_of_related)
    if kv_tokens == 3000 and slots == 64 and bad_row is None and not fails_at:
        shown = {clip.pixels.tobytes(): clip.pixels for request in related for clip in request.clips}
        assert copied > 16 * 40
        assert patches <= sum(np.prod(lab.compute_grid(Clip("image", pixels, (0, 0)))) for pixels in shown.values())


def break_steps(engine: TorchEngine, fails_at) -> None:
    """Some steps run out of memory, and a row called `bad` fails: both after the step wrote what it computes."""
    step_runner, calls = engine.step_runner, count()
    engine.limits.patches = 4096  # there is something left to halve

    def failing(batch, *unread):
        outputs = step_runner(batch, *unread)
        if any(sequence.request.id == "bad" for sequence, _ in batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        if next(calls) in fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs

    engine.step_runner = failing


def generate_tokens(engine: TorchEngine, requests) -> dict[str, list[int]]:
    """Output tokens by request; equal text could hide a difference."""
    tokens_by_request = {}
    retire = engine.retire_finished

    def retire_and_record():
        tokens_by_request.update(
            {
                sequence.request.id: sequence.token_ids[sequence.prompt_tokens : sequence.known_tokens].tolist()
                for sequence in engine.scheduler.running
                if sequence.finish
            }
        )
        retire()

    engine.retire_finished = retire_and_record
    assert sorted(reply.id for reply in generate_replies(engine, requests)) == sorted(
        request.id for request in requests
    )
    return tokens_by_request


def test_logits_equal_those_of_the_reference_model(lab: Lab, requests):
    """A stricter test than tokens: deepstack, windows and positions all change the logits."""
    engine = TorchEngine(lab.folder, lab.family, device="cpu", slots=8)
    first_logits, step_runner = {}, engine.step_runner

    def run_and_record(batch, *unread):
        outputs = step_runner(batch, *unread)
        for sequence, line in zip(select_sampled(batch), outputs.logits, strict=True):
            if sequence.output_tokens == 0:
                first_logits[sequence.request.id] = line
        return outputs

    engine.step_runner = run_and_record
    chosen = [request for request in requests if request.id in ("text", "two", "film")]
    list(generate_replies(engine, chosen))
    engine.close()
    for request in chosen:
        ids = torch.from_numpy(request.input_ids).long()[None]
        kinds = (ids == lab.family.image_token).int() + 2 * (ids == lab.family.video_token).int()
        with torch.inference_mode():
            positions = torch.from_numpy(request.positions).long()[:, None]
            logits = lab.load_reference()(
                ids, position_ids=positions, mm_token_type_ids=kinds, **lab.build_vision_arguments(request)
            ).logits
        torch.testing.assert_close(first_logits[request.id], logits[0, -1], atol=2e-4, rtol=1e-4)
