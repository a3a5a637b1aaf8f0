"""A model divided among processes says what it says whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.model.engines.torch import Torch, forward, memory
from pipeline.model.generate import run
from pipeline.types import Failure, Reply
from tests.model.engines.conftest import GAP, Lab

RANKS = {"qwen2_vl": 2, "qwen2_5_vl": 2, "qwen3_vl": 2, "qwen3_vl_moe": 4}  # four: two key heads, an expert for each


def opened(lab: Lab, ranks: int, **sizes) -> Torch:
    how = {"slots": 4, "kv_tokens": 700, "prefill_tokens": 60, "patches": 64} | sizes
    return Torch(lab.folder, lab.family, device="cpu", tensor_parallel=ranks, hang_s=60, **how)


def said(engine: Torch, requests) -> dict[str, tuple[list[int], torch.Tensor]]:
    """Tokens, and the logits that each was chosen by."""
    logits: dict[str, list[torch.Tensor]] = {row.id: [] for row in requests}
    tokens: dict[str, list[int]] = {}
    compute, retire = engine.forward, engine.retire

    def noting(work):
        made = compute(work)
        complete = [row for row, count in work if count == row.todo]
        for row, line in zip(complete, made, strict=True):
            logits[row.request.id].append(line.clone())
        return made

    def ending():
        tokens.update({row.request.id: row.ids[row.prompt : row.known].tolist() for row in engine.rows if row.finish})
        retire()

    engine.forward, engine.retire = noting, ending
    answers = list(run(engine, requests))
    engine.forward, engine.retire = compute, retire
    assert all(isinstance(answer, Reply) for answer in answers)
    return {name: (tokens[name], torch.stack(logits[name])) for name in tokens}


def test_answers_and_logits_are_those_of_one_process(lab: Lab):
    same = lab.picture(4, 3)
    rows = [
        lab.ask("text", "the cat"),
        lab.ask("picture", lab.picture(7, 5), "what is it?", max_new_tokens=20),
        lab.ask("same", same, "who?"),
        lab.ask("again", same, "where?", temperature=0.8, seed=3),
        lab.ask("two", lab.picture(3, 8), "and", lab.picture(2, 2), "differ how?"),
        lab.ask("film", lab.film(9, 3, 2), "and then?", max_new_tokens=16),
        lab.ask("long", "a" * 150, max_new_tokens=5),
    ]
    kind = lab.folder.name.rstrip("0123456789")
    alone, together = opened(lab, 1), opened(lab, RANKS[kind])
    expected, found = said(alone, rows), said(together, rows)
    parts = [engine.forward.loaded.language.layers[0].self_attn.q_proj.weight for engine in (alone, together)]
    assert parts[0].numel() == RANKS[kind] * parts[1].numel()
    assert not together.gallery.made
    together.close()
    for name, (tokens, logits) in expected.items():
        close = [at for at, line in enumerate(logits.topk(2).values) if line[0] - line[1] < GAP]
        end = close[0] if close else len(tokens)
        assert found[name][0][:end] == tokens[:end], name
        torch.testing.assert_close(found[name][1][: end + 1], logits[: end + 1], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def pair(one_lab: Lab):
    engine = opened(one_lab, 2, patches=4096)
    yield engine
    engine.close()


def test_what_fails_for_every_rank_at_the_same_place_fails_one_row(pair, one_lab, monkeypatch):
    describe = forward.describe

    def spoiled(work):
        step = describe(work)
        bad = any(row.request.id == "bad" for row, _ in work)
        return replace(step, lengths=[length + 1 for length in step.lengths]) if bad else step

    monkeypatch.setattr(forward, "describe", spoiled)
    answers = {answer.id: answer for answer in run(pair, [one_lab.ask(name, "hello") for name in ("a", "bad", "c")])}
    assert answers["bad"].kind == "model"
    assert isinstance(answers["a"], Reply)
    assert isinstance(answers["c"], Reply)


def test_a_picture_that_breaks_another_ranks_tower_fails_its_row_alone(pair, one_lab, caplog):
    good, bad = one_lab.picture(6, 6), one_lab.picture(2, 2)
    for row in (one_lab.ask("good", good, "?"), one_lab.ask("bad", bad, "?")):
        pair.submit(row)
    key = pair.waiting[1].clips[0]
    seen = pair.gallery.clips[key]
    seen.todo = [replace(seen.todo[0], pixels=np.zeros((1, 3, 8, 8), np.uint8))]  # the smaller is the other rank's
    answers = {}
    while pair.waiting or pair.rows:
        answers |= {answer.id: answer for answer in pair.step()}
    assert isinstance(answers["good"], Reply)
    assert isinstance(answers["bad"], Failure)
    assert answers["bad"].kind == "model"


def test_the_least_room_is_everybodys():
    rooms = [memory.Room(4, 900, 64, 60), memory.Room(4, 700, 64, 60)]
    assert memory.Room.least(rooms) == memory.Room(4, 700, 64, 60)


def test_a_rank_that_cannot_start_is_an_error_in_words(one_lab, monkeypatch):
    monkeypatch.setattr("pipeline.model.engines.torch.crew.sys.executable", "/bin/false")
    with pytest.raises(PipelineError, match="rank 1 of the model did not start"):
        opened(one_lab, 2)
