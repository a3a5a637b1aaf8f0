"""The engine thread: order, sharing between callers, and what happens when the engine dies."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.model.engine_thread import EngineThread, generate_replies
from pipeline.model.engines.scripted import ScriptedEngine, ScriptedSettings
from pipeline.types import Reply, Request, Turn


def build_request(name: str, text: str = "hello") -> Request:
    return Request(name, (Turn("user", (text,)),), np.zeros(1, np.int32), np.zeros((3, 1), np.int32))


def open_scripted(**settings: object) -> ScriptedEngine:
    return ScriptedEngine(
        ScriptedSettings.model_validate({"kind": "scripted", "default": "{id}: {prompt}", **settings})
    )


def test_requests_are_taken_only_when_the_engine_has_room():
    taken: list[str] = []

    def generate_requests():
        for number in range(20):
            taken.append(str(number))
            yield build_request(str(number))

    replies = generate_replies(open_scripted(slots=2), generate_requests())
    assert next(replies).text == "0: hello"
    assert len(taken) < 8
    assert [reply.id for reply in replies] == [str(number) for number in range(1, 20)]


def test_the_first_matching_rule_gives_the_reply_and_its_braces_stay():
    engine = open_scripted(replies={"cat": '{"who": "{id}"}', "c": "later rule"})
    assert [
        reply.text for reply in generate_replies(engine, [build_request("a", "a cat"), build_request("b", "dog")])
    ] == [
        '{"who": "a"}',
        "b: dog",
    ]


def test_a_free_slot_is_filled_while_other_slots_are_busy():
    engine = open_scripted(slots=3, delay_ms=3_600_000)
    for busy in (1, 2):
        engine.submit(build_request(str(busy)))
        assert engine.step() == []
        assert engine.metrics()["busy"] == busy


def test_replies_come_in_the_order_of_the_requests():
    class BackwardsEngine(ScriptedEngine):
        def step(self):
            replies = [self.build_reply(request) for request in reversed(self.waiting)]
            self.waiting.clear()
            return replies

    engine_thread = EngineThread(BackwardsEngine(open_scripted().settings))
    replies = engine_thread.answer_requests([build_request(name) for name in "edcba"])
    engine_thread.close()
    assert [reply.id for reply in replies] == list("edcba")


def test_callers_share_an_engine_and_may_use_the_same_ids():
    engine_thread = EngineThread(open_scripted(slots=4, delay_ms=1))
    texts: dict[int, list[str]] = {}

    def ask_ten_rows(number: int) -> None:
        texts[number] = [
            reply.text
            for reply in engine_thread.answer_requests([build_request(str(row), f"from {number}") for row in range(10)])
        ]

    threads = [threading.Thread(target=ask_ten_rows, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine_thread.close()
    assert texts == {number: [f"{row}: from {number}" for row in range(10)] for number in range(5)}


def test_a_batch_does_not_wait_for_another_callers_batch():
    class StuckEngine(ScriptedEngine):
        """Never answers the id `never`."""

        def step(self):
            replies = [self.build_reply(request) for request in self.waiting if request.id != "never"]
            self.waiting = type(self.waiting)(request for request in self.waiting if request.id == "never")
            return replies

    engine_thread = EngineThread(StuckEngine(open_scripted(slots=4).settings))
    future = engine_thread.submit_request(build_request("never"))
    assert engine_thread.answer_requests([build_request("a"), build_request("b")])[1].id == "b"
    assert not future.done()
    engine_thread.close()
    with pytest.raises(RuntimeError, match="closed"):
        future.result()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_raises_in_every_waiting_and_later_caller():
    class BrokenEngine(ScriptedEngine):
        def step(self):
            if any(request.id == "bad" for request in self.waiting):
                raise MemoryError("no more")
            return super().step()

    engine_thread = EngineThread(BrokenEngine(open_scripted().settings))
    assert engine_thread.answer_requests([build_request("good")]) == [Reply("good", "good: hello", output_tokens=2)]
    with pytest.raises(MemoryError, match="no more"):
        engine_thread.answer_requests([build_request("good"), build_request("bad")])
    with pytest.raises(MemoryError):
        engine_thread.answer_requests([replace(build_request("late"), id="late")])
    engine_thread.close()


def test_replies_carry_their_latency():
    class SlowEngine(ScriptedEngine):
        def step(self):
            time.sleep(0.02)
            return super().step()

    engine_thread = EngineThread(SlowEngine(open_scripted().settings))
    assert all(
        reply.latency_s >= 0.02 for reply in engine_thread.answer_requests([build_request("a"), build_request("b")])
    )
    engine_thread.close()
