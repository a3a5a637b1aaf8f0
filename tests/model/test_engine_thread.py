"""The engine's driver: order, sharing between callers, and what happens when the engine dies."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.model.engine_thread import EngineThread, generate_replies
from pipeline.model.engines.scripted import ScriptedEngine, ScriptedSettings
from pipeline.types import Reply, Request, Turn


def ask(name: str, text: str = "hello") -> Request:
    return Request(name, (Turn("user", (text,)),), np.zeros(1, np.int32), np.zeros((3, 1), np.int32))


def scripted(**settings: object) -> ScriptedEngine:
    return ScriptedEngine(
        ScriptedSettings.model_validate({"kind": "scripted", "default": "{id}: {prompt}", **settings})
    )


def test_every_request_is_answered_and_only_as_many_pulled_as_there_is_room_for():
    pulled: list[str] = []

    def source():
        for number in range(20):
            pulled.append(str(number))
            yield ask(str(number))

    replies = generate_replies(scripted(slots=2), source())
    assert next(replies).text == "0: hello"
    assert len(pulled) < 8
    assert [reply.id for reply in replies] == [str(number) for number in range(1, 20)]


def test_the_first_rule_that_fits_gives_the_reply_and_its_braces_are_its_own():
    engine = scripted(replies={"cat": '{"who": "{id}"}', "c": "later rule"})
    assert [reply.text for reply in generate_replies(engine, [ask("a", "a cat"), ask("b", "dog")])] == [
        '{"who": "a"}',
        "b: dog",
    ]


def test_a_free_slot_is_filled_while_other_rows_are_being_answered():
    engine = scripted(slots=3, delay_ms=3_600_000)
    for busy in (1, 2):
        engine.submit(ask(str(busy)))
        assert engine.step() == []
        assert engine.metrics()["busy"] == busy


def test_a_desk_answers_in_the_order_asked_whatever_order_the_engine_finishes_in():
    class Backwards(ScriptedEngine):
        def step(self):
            answers = [self.build_reply(request) for request in reversed(self.waiting)]
            self.waiting.clear()
            return answers

    desk = EngineThread(Backwards(scripted().settings))
    answers = desk.answer_requests([ask(name) for name in "edcba"])
    desk.close()
    assert [answer.id for answer in answers] == list("edcba")


def test_callers_share_a_desk_and_the_same_id_twice_is_two_questions():
    desk = EngineThread(scripted(slots=4, delay_ms=1))
    texts: dict[int, list[str]] = {}

    def caller(number: int) -> None:
        texts[number] = [
            answer.text for answer in desk.answer_requests([ask(str(row), f"from {number}") for row in range(10)])
        ]

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    desk.close()
    assert texts == {number: [f"{row}: from {number}" for row in range(10)] for number in range(5)}


def test_a_batch_is_no_barrier_for_another_callers_batch():
    class Stuck(ScriptedEngine):
        """Never answers the id `never` while others are asked."""

        def step(self):
            answers = [self.build_reply(request) for request in self.waiting if request.id != "never"]
            self.waiting = type(self.waiting)(request for request in self.waiting if request.id == "never")
            return answers

    desk = EngineThread(Stuck(scripted(slots=4).settings))
    stuck = desk.submit_request(ask("never"))
    assert desk.answer_requests([ask("a"), ask("b")])[1].id == "b"
    assert not stuck.done()
    desk.close()
    with pytest.raises(RuntimeError, match="closed"):
        stuck.result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_tells_everyone_who_waits_and_everyone_who_comes_later():
    class Broken(ScriptedEngine):
        def step(self):
            if any(request.id == "bad" for request in self.waiting):
                raise MemoryError("no more")
            return super().step()

    desk = EngineThread(Broken(scripted().settings))
    assert desk.answer_requests([ask("good")]) == [Reply("good", "good: hello", output_tokens=2)]
    with pytest.raises(MemoryError, match="no more"):
        desk.answer_requests([ask("good"), ask("bad")])
    with pytest.raises(MemoryError):
        desk.answer_requests([replace(ask("late"), id="late")])
    desk.close()


def test_every_answer_says_how_long_the_engine_had_it():
    class Slow(ScriptedEngine):
        def step(self):
            time.sleep(0.02)
            return super().step()

    desk = EngineThread(Slow(scripted().settings))
    assert all(reply.latency_s >= 0.02 for reply in desk.answer_requests([ask("a"), ask("b")]))
    desk.close()
