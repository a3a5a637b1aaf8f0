"""Log-probabilities are the model's own and of the answer alone; repeated steps and broken logits change no answer."""

from dataclasses import replace

import pytest
import torch

from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import engine as engine_module
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.scheduler import select_sampled
from pipeline.model.engines.torch.sequence import SequenceState
from tests.model.engines.conftest import Lab, with_and_without_states


@pytest.fixture(params=[False, True], ids=["in-turn", "launch-ahead"])
def engine(one_lab: Lab, request):
    engine = TorchEngine(one_lab.folder, one_lab.family, device="cpu", slots=4, kv_tokens=1200)
    engine.can_launch_ahead = request.param  # as on a GPU
    yield engine
    engine.close()


def answer_all(engine, requests):
    return {reply.id: reply for reply in generate_replies(engine, requests)}


@with_and_without_states
def test_a_step_that_is_repeated_draws_the_same_tokens(engine, one_lab, monkeypatch):
    requests = [one_lab.build_request(str(seed), "say", seed=seed, temperature=1.5) for seed in range(3)]
    expected = {name: reply.text for name, reply in answer_all(engine, requests).items()}
    start_copy, errors = engine_module.start_copy_to_host, [torch.OutOfMemoryError("no memory"), RuntimeError("once")]

    def fail_twice(tokens, logprobs):
        if errors and len(tokens) == 3:
            raise errors.pop()
        return start_copy(tokens, logprobs)

    monkeypatch.setattr(engine_module, "start_copy_to_host", fail_twice)
    assert {name: reply.text for name, reply in answer_all(engine, requests).items()} == expected
    assert not errors


def test_logits_that_are_not_numbers_fail_their_row_alone(engine, one_lab):
    requests = [one_lab.build_request(str(number), "x" * number) for number in range(4)]
    expected, step_runner = answer_all(engine, requests), engine.step_runner

    @torch.inference_mode()
    def run_with_overflow(batch, *unread):
        outputs = step_runner(batch, *unread)
        for sequence, line in zip(select_sampled(batch), outputs.logits, strict=True):
            if sequence.request.id == "2" and sequence.output_tokens == 3:
                line[5] = torch.nan
        return outputs

    engine.step_runner = run_with_overflow
    answers = answer_all(engine, requests)
    assert "not numbers" in answers.pop("2").message
    assert {name: reply.text for name, reply in answers.items()} == {
        name: reply.text for name, reply in expected.items() if name != "2"
    }


def test_the_logprob_of_a_guided_token_is_that_of_the_model(engine, one_lab, monkeypatch):
    recorded, compared, step_runner, start_copy = [], [], engine.step_runner, engine_module.start_copy_to_host

    def run_and_record(batch, *unread):
        outputs = step_runner(batch, *unread)
        recorded.append(outputs.logits.clone())
        return outputs

    def compare(tokens, logprobs):
        compared.extend(zip(logprobs.tolist(), recorded[-1].log_softmax(-1)[:, tokens[0]].tolist(), strict=True))
        return start_copy(tokens, logprobs)

    monkeypatch.setattr(engine_module, "start_copy_to_host", compare)
    engine.step_runner = run_and_record
    schema = '{"type":"string","enum":["ab","xy"]}'
    answer_all(engine, [replace(one_lab.build_request("a", "hello", max_new_tokens=20), schema_text=schema)])
    assert compared
    assert all(ours == pytest.approx(expected, abs=1e-4) for ours, expected in compared)


class Refusing:
    """A grammar that refuses the token 9."""

    is_done = False

    def accept_token(self, token):
        return token != 9

    def get_forced_tokens(self):
        return []


def test_tokens_that_are_refused_or_thought_do_not_count_in_the_logprob(engine, one_lab):
    request = one_lab.build_request("a", "hello", max_new_tokens=9)
    sequence = SequenceState(request, 9, (), request.input_ids[:0], Refusing())
    for token, logprob in ((5, -0.1), (9, -9.0), (7, -0.3)):
        sequence.append_sampled_token(token, logprob, engine.detokenizer)
    assert sequence.build_reply(engine.detokenizer).logprob == pytest.approx(-0.2)

    thinking = replace(engine.detokenizer, think_end_token=20, stop_tokens=frozenset())
    sequence = SequenceState(request, 9, (), request.input_ids[:0])
    for token, logprob in ((5, -7.0), (20, -8.0), (6, -0.5), (7, -0.7)):
        sequence.append_sampled_token(token, logprob, thinking)
    assert sequence.build_reply(thinking).logprob == pytest.approx(-0.6)
