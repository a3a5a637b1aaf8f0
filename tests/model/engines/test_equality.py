"""Greedy answers of the engine are those of `generate` on each row alone, whatever else is under way."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from tests.model.engines.conftest import GAP, Lab

MIXES = st.permutations(range(10)).flatmap(lambda order: st.integers(1, 10).map(lambda count: order[:count]))


@pytest.fixture(scope="module")
def rows(lab: Lab):
    same = lab.picture(4, 3)
    long = lab.film(9, 3, 2)  # an odd number of frames, and more of them than any side has tokens
    return [
        lab.ask("text", "the cat"),
        lab.ask("picture", lab.picture(7, 5), "what is it?", max_new_tokens=20),
        lab.ask("same", same, "who?"),
        lab.ask("same-again", same, "where?"),
        lab.ask("two", lab.picture(3, 8), "and", lab.picture(2, 2), "differ how?"),
        lab.ask("film", lab.film(4, 4, 4), "what happens?"),
        lab.ask("long-film", long, "and then?", max_new_tokens=16),
        lab.ask("both", lab.film(3, 2, 3), "like", lab.picture(5, 2), "?"),
        lab.ask("one-token", lab.picture(4, 4), "yes or no?", max_new_tokens=1),
        lab.ask("long", "a" * 150, max_new_tokens=30),
    ]


@pytest.fixture(scope="module")
def expected(lab: Lab, rows):
    return {row.id: lab.generate(row) for row in rows}


@given(
    mix=MIXES,
    slots=st.sampled_from([1, 2, 3, 5, 64]),
    prefill=st.sampled_from([7, 50, 4096]),
    patches=st.sampled_from([1, 60, 4096]),
    ahead=st.booleans(),
)
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_answers_equal_generate_for_any_mix_order_and_size(
    lab: Lab, rows, expected, mix, slots, prefill, patches, ahead
):
    engine = TorchEngine(
        lab.folder, lab.family, device="cpu", slots=slots, prefill_tokens=prefill, patches=patches, kv_tokens=900
    )
    engine.can_launch_ahead = ahead  # as on a GPU
    said = tokens_of(engine, [rows[index] for index in mix])
    engine.close()
    for name, tokens in said.items():
        reference, gaps = expected[name]
        differ = [at for at, (ours, theirs) in enumerate(zip(tokens, reference, strict=False)) if ours != theirs]
        assert (not differ and len(tokens) == len(reference)) or gaps[differ[0]] < GAP, name


def tokens_of(engine: TorchEngine, requests) -> dict[str, list[int]]:
    """The tokens themselves: text can hide a difference."""
    said = {}
    retire = engine.retire_finished

    def noting():
        said.update(
            {
                row.request.id: row.token_ids[row.prompt_tokens : row.known_tokens].tolist()
                for row in engine.scheduler.running
                if row.finish
            }
        )
        retire()

    engine.retire_finished = noting
    assert sorted(reply.id for reply in generate_replies(engine, requests)) == sorted(
        request.id for request in requests
    )
    return said


def test_logits_are_the_reference_models_logits(lab: Lab, rows):
    """Closer than tokens can tell: deepstack, windows and positions all count."""
    engine = TorchEngine(lab.folder, lab.family, device="cpu", slots=8)
    seen = {}
    forward = engine.step_runner

    def noting(work, *fed):
        logits = forward(work, *fed)
        complete = [row for row, count in work if count == row.pending_tokens]
        seen.update(
            {row.request.id: line for row, line in zip(complete, logits, strict=True) if row.output_tokens == 0}
        )
        return logits

    engine.step_runner = noting
    asked = [row for row in rows if row.id in ("text", "two", "film")]
    list(generate_replies(engine, asked))
    engine.close()
    for row in asked:
        ids = torch.from_numpy(row.input_ids).long()[None]
        kinds = (ids == lab.family.image_token).int() + 2 * (ids == lab.family.video_token).int()
        with torch.inference_mode():
            positions = torch.from_numpy(row.positions).long()[:, None]
            logits = lab.reference()(ids, position_ids=positions, mm_token_type_ids=kinds, **lab.vision(row)).logits
        torch.testing.assert_close(seen[row.id], logits[0, -1], atol=2e-4, rtol=1e-4)
