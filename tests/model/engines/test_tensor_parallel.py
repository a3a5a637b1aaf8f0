"""A model divided among processes says what it says whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import memory, step_runner
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.types import Failure, Reply, Request
from tests.model.engines.conftest import GAP, Lab
from tests.model.engines.test_shard import WIDE
from tests.model.test_int4 import awq_checkpoint

RANKS = (2, 4)  # four: two key heads, and of a mixture an expert for each


def opened(lab: Lab, ranks: int, **how) -> TorchEngine:
    sizes = {"slots": 4, "kv_tokens": 700, "prefill_tokens": 60, "patches": 64}
    return TorchEngine(lab.folder, lab.family, device="cpu", tensor_parallel=ranks, hang_s=60, **sizes | how)


def said(engine: TorchEngine, requests) -> dict[str, tuple[list[int], torch.Tensor]]:
    """Tokens, and the logits that each was chosen by."""
    logits: dict[str, list[torch.Tensor]] = {row.id: [] for row in requests}
    tokens: dict[str, list[int]] = {}
    compute, retire = engine.step_runner, engine.retire_finished

    def noting(work, *fed):
        made = compute(work, *fed)
        complete = [row for row, count in work if count == row.pending_tokens]
        for row, line in zip(complete, made, strict=True):
            logits[row.request.id].append(line.clone())
        return made

    def ending():
        tokens.update(
            {
                row.request.id: row.token_ids[row.prompt_tokens : row.known_tokens].tolist()
                for row in engine.scheduler.running
                if row.finish
            }
        )
        retire()

    engine.step_runner, engine.retire_finished = noting, ending
    answers = list(generate_replies(engine, requests))
    engine.step_runner, engine.retire_finished = compute, retire
    assert not [answer for answer in answers if not isinstance(answer, Reply)]
    return {name: (tokens[name], torch.stack(logits[name])) for name in tokens}


def mixed(lab: Lab) -> list[Request]:
    same = lab.picture(4, 3)
    return [
        lab.ask("text", "the cat"),
        lab.ask("picture", lab.picture(7, 5), "what is it?", max_new_tokens=20),
        lab.ask("same", same, "who?"),
        lab.ask("again", same, "where?", temperature=0.8, seed=3),
        lab.ask("two", lab.picture(3, 8), "and", lab.picture(2, 2), "differ how?"),
        lab.ask("film", lab.film(9, 3, 2), "and then?", max_new_tokens=16),
        lab.ask("long", "a" * 150, max_new_tokens=5),
    ]


def the_same_divided(lab: Lab, ranks: int, rows: list[Request], expected, **how) -> int:
    """Holds answers and logits to those of one process; returns the bytes of text weights that rank 0 has."""
    together = opened(lab, ranks, **how)
    found = said(together, rows)
    assert not together.vision_cache.features_by_clip
    together.close()
    for name, (tokens, logits) in expected.items():
        close = [at for at, line in enumerate(logits.topk(2).values) if line[0] - line[1] < GAP]
        end = close[0] if close else len(tokens)
        assert found[name][0][:end] == tokens[:end], name
        torch.testing.assert_close(found[name][1][: end + 1], logits[: end + 1], atol=1e-4, rtol=1e-4)
    return held(together)


def held(engine: TorchEngine) -> int:
    layers = engine.step_runner.loaded.language_model.layers
    return sum(each.nbytes for each in (*layers.parameters(), *layers.buffers()) if each.dim() > 1)


def test_answers_and_logits_are_those_of_one_process(lab: Lab):
    rows, alone = mixed(lab), opened(lab, 1)
    expected = said(alone, rows)
    for ranks in RANKS:
        assert the_same_divided(lab, ranks, rows, expected) < held(alone) / ranks * 1.2


@pytest.mark.parametrize("made_by", ["us", "AWQ"])
def test_four_bit_weights_divided_say_what_they_say_whole(made_by, tmp_path):
    lab = Lab(tmp_path / "dense", "qwen3_vl", text_config=WIDE, vision_config={"out_hidden_size": 128})
    if made_by == "AWQ":
        (tmp_path / "awq").mkdir()
        awq_checkpoint(tmp_path / "awq", lab.folder)
        lab.folder = tmp_path / "awq"
    how = {"dtype": "float32"} | ({"quantize": "int4"} if made_by == "us" else {})
    rows, alone = mixed(lab), opened(lab, 1, **how)
    expected = said(alone, rows)
    assert the_same_divided(lab, 2, rows, expected, **how) < held(alone) / 2 * 1.2


@pytest.fixture(scope="module")
def pair(one_lab: Lab):
    engine = opened(one_lab, 2, patches=4096)
    yield engine
    engine.close()


def test_what_fails_for_every_rank_at_the_same_place_fails_one_row(pair, one_lab, monkeypatch):
    describe = step_runner.build_step_inputs

    def spoiled(work):
        step = describe(work)
        bad = any(row.request.id == "bad" for row, _ in work)
        return replace(step, query_lengths=[length + 1 for length in step.query_lengths]) if bad else step

    monkeypatch.setattr(step_runner, "build_step_inputs", spoiled)
    answers = {
        answer.id: answer
        for answer in generate_replies(pair, [one_lab.ask(name, "hello") for name in ("a", "bad", "c")])
    }
    assert answers["bad"].kind == "model"
    assert isinstance(answers["a"], Reply)
    assert isinstance(answers["c"], Reply)


def test_a_picture_that_breaks_another_ranks_tower_fails_its_row_alone(pair, one_lab, caplog):
    good, bad = one_lab.picture(6, 6), one_lab.picture(2, 2)
    for row in (one_lab.ask("good", good, "?"), one_lab.ask("bad", bad, "?")):
        pair.submit(row)
    key = pair.scheduler.waiting[1].clip_keys[0]
    seen = pair.vision_cache.clips[key]
    seen.pending_slices = [
        replace(seen.pending_slices[0], pixels=np.zeros((1, 3, 8, 8), np.uint8))
    ]  # the smaller is the other rank's
    answers = {}
    while pair.scheduler.waiting or pair.scheduler.running:
        answers |= {answer.id: answer for answer in pair.step()}
    assert isinstance(answers["good"], Reply)
    assert isinstance(answers["bad"], Failure)
    assert answers["bad"].kind == "model"


def test_the_least_room_is_everybodys():
    rooms = [memory.EngineSizes(4, 900, 64, 60), memory.EngineSizes(4, 700, 64, 60)]
    assert memory.EngineSizes.take_smallest(rooms) == memory.EngineSizes(4, 700, 64, 60)


def test_a_rank_that_cannot_start_is_an_error_in_words(one_lab, monkeypatch):
    monkeypatch.setattr("pipeline.model.engines.torch.worker_group.sys.executable", "/bin/false")
    with pytest.raises(PipelineError, match="rank 1 of the model did not start"):
        opened(one_lab, 2)
