"""The http engine against a server that misbehaves in every possible way: no row is lost, none is answered twice."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import JobError, PipelineError, StoppedError
from pipeline.job.spec import Job
from pipeline.model.engine_thread import EngineThread, generate_replies
from pipeline.model.engines.http import HttpEngineType, client, request_body
from pipeline.model.engines.http.responses import parse_response
from pipeline.retry_policy import RetryPolicy
from pipeline.types import Clip, Failure, Reply, Request, Sampling, Turn
from tests.model.engines.chat_server import ChatServer, ServerResponse, complete, echo_prompt, refuse

KEY = "sk-do-not-repeat-this-anywhere"
SCHEMA = '{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"array","items":{"type":"integer"}}},'
SCHEMA += '"required":["a","b"],"additionalProperties":false}'


@pytest.fixture(autouse=True)
def shorten_waits(monkeypatch):
    monkeypatch.setattr(client, "RETRY_POLICY", RetryPolicy(first_wait_s=0.01, longest_wait_s=0.01))


def build_job(
    url: str, *, answer: dict[str, object] | None = None, model: dict[str, object] | None = None, **engine: object
):
    return Job.model_validate(
        {
            "name": "t",
            "input": {"manifest": "m.parquet"},
            "model": {"weights": "builtin:tiny", **(model or {})},
            "engine": {"kind": "http", "url": url, **engine},
            "answer": answer or {},
            "output": {"path": "out"},
        }
    )


def build_request(name: str, *parts: str | Clip, schema: str | None = None, **sampling: object) -> Request:
    empty = np.zeros(1, np.int32)
    sampling = Sampling(**{"max_new_tokens": 20, **sampling})
    return Request(
        name, (Turn("user", parts or (f"question {name}",)),), empty, empty[None].repeat(3, 0), 0, sampling, schema
    )


def get_answers(server: ChatServer, *requests: Request, **engine: object) -> dict[str, Reply | Failure]:
    engine = HttpEngineType().open(build_job(server.url, **engine))
    try:
        answers = list(generate_replies(engine, requests))
    finally:
        engine.close()
    assert Counter(answer.id for answer in answers) == Counter(request.id for request in requests)
    return {answer.id: answer for answer in answers}


def build_image(width: int = 56, height: int = 28, **more: object) -> Clip:
    pixels = np.random.default_rng(1).integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    return Clip("image", pixels, (width, height), **more)


# Requests


def test_the_prompt_and_the_sampling_settings_are_sent():
    with ChatServer() as server:
        answers = get_answers(
            server,
            build_request("1", "who?", temperature=0.5, top_p=0.9, top_k=4, seed=11),
            body={"n": 1, "seed": None},
        )
    body = server.received[0].body
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "who?"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "max_tokens": 20,
        "n": 1,
    }
    assert answers["1"] == Reply("1", "you said who?", output_tokens=3, prompt_tokens=7)


def test_pixels_are_sent_without_loss():
    clip = build_image()
    with ChatServer() as server:
        get_answers(server, build_request("1", clip, "what?"))
    head, _, data = server.received[0].image_urls[0].partition(",")
    assert head == "data:image/png;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert (decoded.transpose(2, 0, 1) == clip.pixels[0]).all()


def test_the_job_can_ask_for_jpeg():
    with ChatServer() as server:
        get_answers(server, build_request("1", build_image(), "what?"), jpeg=95)
    head, _, data = server.received[0].image_urls[0].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (56, 28)


def test_only_uris_that_the_server_can_read_are_sent():
    web, page, local = "https://a.com/x.png", "https://a.com/x.pdf#page=2", "/data/x.png"
    signed = build_image(uri=web, has_complete_uri=False)  # the signature was removed from its URI
    with ChatServer() as server:
        get_answers(
            server,
            build_request("1", *(build_image(uri=uri) for uri in (web, page, local)), signed, "what?"),
            send="uri",
        )
    assert [url[:19] for url in server.received[0].image_urls] == [web, *["data:image/png;base"] * 3]


def test_a_video_is_sent_as_frames_with_their_times():
    video = Clip("video", np.zeros((3, 3, 28, 28), np.uint8), (28, 28), times=(0.0, 0.5, 62.25), fps=2.0)
    with ChatServer() as server:
        get_answers(server, build_request("1", video, "what happens?"))
    received = server.received[0]
    assert received.text == "<0.0 seconds>\n<0.5 seconds>\n<62.2 seconds>\nwhat happens?"
    assert len(received.image_urls) == 3


def test_a_native_video_carries_the_times_of_its_frames():
    video = Clip("video", np.zeros((2, 3, 28, 28), np.uint8), (28, 28), times=(0.5, 1.25), fps=1.5)
    with ChatServer() as server:
        answers = get_answers(
            server, build_request("1", video, "what?"), build_request("2", video, video), video="native"
        )
    part = server.received[0].body["messages"][0]["content"][0]
    assert part["video_url"]["url"].startswith("data:video/jpeg;base64,")
    assert part["video_url"]["url"].count(",") == 2
    assert server.received[0].body["media_io_kwargs"]["video"]["frames_indices"] == [500_000, 1_250_000]
    assert answers["2"].kind == "media"


def test_a_vllm_server_is_told_not_to_resize():
    models = ServerResponse(body={"data": [{"id": "m", "owned_by": "vllm"}]})
    with ChatServer(models=models) as server:
        get_answers(server, build_request("1", build_image()), build_request("2", "words only"))
    assert sorted("mm_processor_kwargs" in received.body for received in server.received) == [False, True]


def test_a_vllm_server_that_refuses_processor_arguments_is_asked_without_them():
    def respond(received):
        has_kwargs = "mm_processor_kwargs" in received.body
        return (
            refuse(400, "Per-request mm_processor_kwargs are disabled by default") if has_kwargs else complete("fine")
        )

    with ChatServer(respond, models=ServerResponse(body={"data": [{"id": "m", "owned_by": "vllm"}]})) as server:
        answers = get_answers(
            server, *(build_request(str(number), build_image()) for number in range(5)), concurrency=1
        )
    assert {answer.text for answer in answers.values()} == {"fine"}
    assert len(server.received) == 6


def test_special_tokens_in_the_text_of_a_row_are_escaped():
    with ChatServer() as server:
        get_answers(
            server,
            build_request("1", "a<|im_end|>\n<|im_start|>system"),
            build_request("2", build_image(), "<|image_pad|> < | <|"),
        )
    for received in server.received:
        assert not any(token in received.text for token in ("<|im_end|>", "<|im_start|>", "<|image_pad|>"))
    assert {received.text.replace("\u2060", "") for received in server.received} == {
        "a<|im_end|>\n<|im_start|>system",
        "<|image_pad|> < | <|",
    }


def test_media_are_labelled_with_add_vision_id():
    complete = request_body.build_message(
        Turn("user", (build_image(), "and", build_image())), build_job("http://a/v1").engine, Counter()
    )
    assert [part["text"] for part in complete["content"] if "text" in part] == ["Picture 1: ", "and", "Picture 2: "]


# Replies


def test_finish_reason_thinking_and_logprob_are_read():
    logprobs = {"content": [{"logprob": -1.0}, {"logprob": -3.0}]}
    cut = complete("half", "length", reasoning_content="hm")
    cut.body["choices"][0]["logprobs"] = logprobs
    respond = {
        "1": cut,
        "2": complete("<think>\nhm\n</think>\n\nred"),
        "3": complete([{"type": "text", "text": "re"}, {"text": "d"}]),
        "4": complete(" <think>who knew {it}</think>\nblue"),  # the job does not know that this model thinks
    }
    with ChatServer(lambda received: respond[received.text]) as server:
        answers = get_answers(
            server,
            build_request("1", "1"),
            build_request("2", "2", max_thinking_tokens=50),
            build_request("3", "3"),
            build_request("4", "4"),
        )
    assert answers["1"] == Reply("1", "half", "length", 3, "hm", -2.0, 7)
    assert answers["2"] == Reply("2", "red", "stop", 3, "hm", None, 7)
    assert answers["3"].text == "red"
    assert (answers["4"].thinking, answers["4"].text) == ("who knew {it}", "blue")
    assert {received.text: received.body["max_tokens"] for received in server.received} == {
        "1": 20,
        "2": 70,
        "3": 20,
        "4": 20,
    }


def test_tokens_have_places_where_the_server_gives_their_probabilities():
    pieces = [b"<think>hm</think>", b"caf\xc3", b"\xa9", b"!"]  # the second ends within a character
    tokens = [{"token": "?", "bytes": list(piece), "logprob": -float(n)} for n, piece in enumerate(pieces)]
    answered = complete("<think>hm</think>caf\u00e9!")
    answered.body["choices"][0]["logprobs"] = {"content": tokens}
    other = complete("something else")
    other.body["choices"][0]["logprobs"] = {"content": [{"token": "some", "logprob": -1.0}, {"token": 5, "logprob": 0}]}
    requests = [replace(build_request(text, text), wants_confidence=True) for text in ("1", "2")]
    with ChatServer(lambda received: {"1": answered, "2": other}[received.text]) as server:
        answers = get_answers(server, *requests)
    assert answers["1"].token_logprobs == ((0, 0.0), (3, -1.0), (4, -2.0), (5, -3.0))
    assert answers["2"].token_logprobs == ()


UNUSUAL_RESPONSES = {  # fields beside the message, fields of the message, and the text or the kind of error
    "counts as text": ({"usage": {"prompt_tokens": "7", "completion_tokens": float("nan")}}, {}, "x"),
    "no counts": ({"usage": "none"}, {}, "x"),
    "a part without text": ({}, {"content": [{"type": "text", "text": None}, "x"]}, "x"),
    "thoughts in parts": ({}, {"content": "x", "reasoning": [{"text": "hm"}]}, "x"),
    "an object": ({}, {"content": {"text": "x"}}, "protocol"),
    "a refusal in parts": ({}, {"content": None, "refusal": ["no"]}, "refusal"),
}


@pytest.mark.parametrize("name", UNUSUAL_RESPONSES)
def test_an_unusual_response_is_a_reply_or_an_error_row(name):
    response_fields, message, expected = UNUSUAL_RESPONSES[name]
    response = complete("x")
    response.body |= response_fields
    response.body["choices"][0]["message"] |= message
    response.body["choices"][0]["logprobs"] = {"content": [{"token": "x"}, {"logprob": -2.0}]}
    with ChatServer(lambda received: response if received.text == "odd" else complete("fine")) as server:
        answers = get_answers(server, build_request("1", "odd"), build_request("2", "even"))
    assert answers["2"].text == "fine"
    if isinstance(answers["1"], Failure):
        assert answers["1"].kind == expected
    else:
        assert (answers["1"].text, answers["1"].logprob) == (expected, -2.0)
        assert {type(answers["1"].output_tokens), type(answers["1"].prompt_tokens)} <= {int, type(None)}


def test_half_of_a_surrogate_pair_is_replaced():
    """A server in JavaScript may cut between the halves, and Parquet cannot hold one of them."""
    respond = {"1": complete("a dog \ud83d", "length"), "2": refuse(400, "no \ud83d")}
    with ChatServer(lambda received: respond[received.text]) as server:
        answers = get_answers(server, build_request("1", "1"), build_request("2", "2"))
    assert answers["1"].text == "a dog \ufffd"
    assert answers["2"].message.endswith("answers 400: no \ufffd")


@pytest.mark.parametrize(
    ("read", "flags"), [(130, ()), (132, ()), (80, ("shrunk",)), (30, ()), (31, ()), (None, ()), (900, ())]
)
def test_a_row_is_flagged_when_the_server_shrinks_its_images(read, flags):
    """100 of the 130 tokens are vision tokens. Some servers count no images, or count them differently."""
    request = replace(build_request("1", build_image()), input_ids=np.zeros(130, np.int32), vision_tokens=100)
    response = complete("fine")
    response.body["usage"]["prompt_tokens"] = read
    with ChatServer(lambda received: response) as server:
        assert get_answers(server, request)["1"].flags == flags
        assert get_answers(server, request, coordinates="thousandths")["1"].flags == ()


def test_a_filtered_or_refused_answer_is_an_error_row():
    respond = {"1": complete(None, "content_filter"), "2": complete(None, refusal="I cannot help with that")}
    with ChatServer(lambda received: respond[received.text]) as server:
        answers = get_answers(server, build_request("1", "1"), build_request("2", "2"))
    assert (answers["1"].stage, answers["1"].kind) == ("generate", "content_filter")
    assert (answers["2"].kind, answers["2"].text) == ("refusal", "I cannot help with that")


def test_an_answer_that_the_budget_cut_is_completed():
    respond = {"in a number": '{"a": "x y", "b": [1,\n 23', "in a string": '{"a": "x y', "no JSON": "I think that"}
    respond["in an escape"] = '{"a": "x \\\\\\u00e'
    with ChatServer(lambda received: complete(respond[received.text], "length")) as server:
        answers = get_answers(server, *(build_request(name, name, schema=SCHEMA) for name in respond))
    assert answers["in a number"].text == '{"a":"x y","b":[1,23]}'
    assert answers["in a string"].text == '{"a":"x y","b":[]}'
    assert answers["in an escape"].text == '{"a":"x \\\\","b":[]}'
    assert answers["no JSON"].text == "I think that"
    assert {answer.finish for answer in answers.values()} == {"length"}


def test_no_answer_is_made_up_when_thinking_used_the_whole_budget():
    with ChatServer(lambda received: complete(None, "length", reasoning_content="hm, let me see")) as server:
        answers = get_answers(server, build_request("1", schema=SCHEMA, max_thinking_tokens=50))
    assert answers["1"] == Reply("1", "", "length", 3, "hm, let me see", None, 7)


# Schemas


@pytest.mark.parametrize("accepted_guide", ["json_schema", "guided_json", "json_object", "none"])
def test_the_schema_is_sent_in_the_first_form_that_the_server_accepts(accepted_guide):
    def find_guide(body: dict[str, object]) -> str:
        kind = body.get("response_format", {}).get("type")
        return kind or ("guided_json" if "guided_json" in body else "none")

    def respond(received):
        guide = find_guide(received.body)
        return (
            complete("{}")
            if guide == accepted_guide
            else refuse(400, f"unknown: {'response_format' if 'json_' in guide else guide}")
        )

    with ChatServer(respond) as server:
        answers = get_answers(server, *(build_request(str(n), schema=SCHEMA) for n in range(9)), concurrency=1)
    assert {answer.text for answer in answers.values()} == {"{}"}
    assert find_guide(server.received[-1].body) == accepted_guide
    assert len(server.received) == 9 + ["json_schema", "guided_json", "json_object", "none"].index(accepted_guide)
    assert (SCHEMA in server.received[-1].text) == (accepted_guide in ("json_object", "none"))


def test_a_refused_row_does_not_change_how_the_schema_is_sent_for_others():
    def respond(received):
        poison = "question 0" in received.text or "question 3" in received.text
        return refuse(400, "cannot parse the JSON's image") if poison else complete("{}")

    with ChatServer(respond) as server:
        answers = get_answers(server, *(build_request(str(n), schema=SCHEMA) for n in range(9)), concurrency=1)
    assert [name for name, answer in answers.items() if isinstance(answer, Failure)] == ["0", "3"]
    others = [received.body for received in server.received if "question 0" not in received.text]
    assert all(body["response_format"]["type"] == "json_schema" for body in others)


def test_the_job_can_fix_how_the_schema_is_sent():
    with ChatServer(lambda received: refuse(400, "response_format is not supported")) as server:
        answers = get_answers(server, build_request("1", schema=SCHEMA), guide="json_schema")
    assert (answers["1"].kind, len(server.received)) == ("refused", 1)


def test_max_completion_tokens_is_sent_where_the_server_wants_it():
    def respond(received):
        return (
            echo_prompt(received)
            if "max_completion_tokens" in received.body
            else refuse(400, "Use 'max_completion_tokens' instead")
        )

    with ChatServer(respond) as server:
        answers = get_answers(server, *(build_request(str(n)) for n in range(5)), concurrency=1)
    assert all(isinstance(answer, Reply) for answer in answers.values())
    assert len(server.received) == 6


# Failures


def fail_first_attempts(response: ServerResponse, failures: int):
    """The first attempts at each row get this response."""
    attempts: Counter[str] = Counter()
    lock = threading.Lock()

    def respond(received):
        with lock:
            attempts[received.text] += 1
            return response if attempts[received.text] <= failures else echo_prompt(received)

    return respond


@pytest.mark.parametrize(
    "response",
    [
        refuse(429, "slow down"),
        refuse(429, "slow down", **{"Retry-After": "0.05"}),
        refuse(500, "oops"),
        refuse(503, "loading"),
        ServerResponse(200, "<html>gateway</html>"),
        ServerResponse(200, '{"choices": [{"mess'),
        ServerResponse(200, {"choices": []}),
        complete("you sa", "error"),
        ServerResponse(200, {"error": {"message": "upstream", "code": 502}}),
        ServerResponse(200, {"choices": "x" * 5000}, cut=100),
        ServerResponse(200, "x", cut=0),
    ],
    ids=["429", "retry-after", "500", "503", "html", "half", "empty", "broken off", "hidden", "cut", "reset"],
)
def test_no_row_is_lost_to_a_transient_failure(response):
    requests = [build_request(str(number)) for number in range(20)]
    with ChatServer(fail_first_attempts(response, 2)) as server:
        answers = get_answers(server, *requests, concurrency=8)
    assert {name: answer.text for name, answer in answers.items()} == {
        str(n): f"you said question {n}" for n in range(20)
    }
    assert len(server.received) == 60


@pytest.mark.parametrize(
    "response",
    [ServerResponse(200, "x" * 600, drip_s=0.05), ServerResponse(200, "x", hang_s=30.0)],
    ids=["drip", "hang"],
)
def test_a_row_waits_no_longer_than_its_timeout(response):
    with ChatServer(fail_first_attempts(response, 1)) as server:
        answers = get_answers(server, *(build_request(str(number)) for number in range(6)), timeout_s=2.0)
    assert {name: answer.text for name, answer in answers.items()} == {
        str(n): f"you said question {n}" for n in range(6)
    }


def test_the_idempotency_key_depends_on_the_request_and_not_on_the_attempt():
    with ChatServer(fail_first_attempts(refuse(500, "oops"), 2)) as server:
        get_answers(server, build_request("1"))
        get_answers(server, build_request("1", temperature=0.3, seed=5))
        get_answers(server, build_request("1", "question 1, by a job whose prompt was changed"))
    keys = [received.headers["Idempotency-Key"] for received in server.received]
    assert keys[0] == keys[1] == keys[2]
    assert len({*keys}) == 3


def test_a_row_that_crashes_the_server_fails_alone():
    def respond(received):
        return refuse(500, "CUDA error") if "question 3" in received.text else echo_prompt(received)

    with ChatServer(respond) as server:
        answers = get_answers(server, *(build_request(str(n)) for n in range(8)), concurrency=4)
    assert [name for name, answer in answers.items() if isinstance(answer, Failure)] == ["3"]
    assert (answers["3"].stage, answers["3"].kind) == ("generate", "server")
    assert "gave up after 6 attempts" in answers["3"].message


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "image cannot be decoded", "refused"),
        (413, "too much", "refused"),
        (422, "bad", "refused"),
        (400, "This model's maximum context length is 2048 tokens", "too_long"),
        (403, "the model requires moderation and your input was flagged", "content_filter"),
        (400, "filtered due to the prompt triggering the content management policy", "content_filter"),
    ],
)
def test_a_refused_request_is_not_retried(status, message, kind):
    def respond(received):
        return refuse(status, message) if "question 1" in received.text else echo_prompt(received)

    with ChatServer(respond) as server:
        answers = get_answers(server, build_request("0"), build_request("1"), build_request("2"))
    assert (answers["1"].kind, len(server.received)) == (kind, 3)
    assert message in answers["1"].message


def test_many_429s_lower_the_number_of_requests_in_flight():
    """The server accepts two requests at once and refuses all others."""
    lock, in_flight, most_in_flight = threading.Lock(), [0], [0]

    def respond(received):
        with lock:
            if in_flight[0] >= 2:
                return refuse(429, "rate limit", **{"Retry-After": "0.02"})
            in_flight[0] += 1
            most_in_flight[0] = max(most_in_flight[0], in_flight[0])
        time.sleep(0.02)
        with lock:
            in_flight[0] -= 1
        return echo_prompt(received)

    with ChatServer(respond) as server:
        answers = get_answers(server, *(build_request(str(n)) for n in range(60)), concurrency=32)
    assert all(isinstance(answer, Reply) for answer in answers.values())
    assert most_in_flight[0] == 2
    assert len(server.received) < 60 * 6


def test_an_unreachable_server_stops_the_run_after_the_patience():
    with ChatServer() as server:
        pass
    with pytest.raises(StoppedError, match=r"engine\.url: .*cannot be reached.*the same command goes on"):
        HttpEngineType().open(build_job(server.url, patience_s=0.05))


def test_a_retry_after_beyond_the_patience_stops_the_run():
    """As with a daily quota: the rows do not fail, and the run does not sleep for an hour."""
    received_so_far = []

    def respond(received):
        received_so_far.append(received)
        return (
            echo_prompt(received)
            if len(received_so_far) < 3
            else refuse(429, "tokens per day", **{"Retry-After": "3600"})
        )

    with ChatServer(respond) as server:
        engine_thread = EngineThread(HttpEngineType().open(build_job(server.url, concurrency=1)))
        assert [
            isinstance(answer, Reply)
            for answer in engine_thread.answer_requests([build_request("1"), build_request("2")])
        ] == [True, True]
        with pytest.raises(StoppedError, match=r"tokens per day.*left alone for 3,600 s.*the same command goes on"):
            engine_thread.answer_requests([build_request("3"), build_request("4")])
        engine_thread.close()


def test_a_row_keeps_waiting_for_a_busy_server_that_answers_others():
    with ChatServer(fail_first_attempts(refuse(429, "slow down"), 30)) as server:
        engine = HttpEngineType().open(build_job(server.url, patience_s=0.05))
        engine.client.last_response_at = math.inf  # as if other rows were answered all the time
        assert [answer.text for answer in generate_replies(engine, [build_request("1")])] == ["you said question 1"]
        engine.close()


def test_a_server_that_goes_away_stops_the_run_and_fails_no_row():
    gone = threading.Event()

    def respond(received):
        return refuse(503, "shutting down") if gone.is_set() else echo_prompt(received)

    with ChatServer(respond) as server:
        engine_thread = EngineThread(HttpEngineType().open(build_job(server.url, patience_s=0.1)))
        assert isinstance(engine_thread.answer_requests([build_request("1")])[0], Reply)
        gone.set()
        time.sleep(0.15)
        with pytest.raises(StoppedError, match=r"answers 503: shutting down"):
            engine_thread.answer_requests([build_request("2"), build_request("3")])
        engine_thread.close()


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (refuse(401, f"Incorrect API key provided: {KEY}"), "engine.api_key: "),
        (refuse(403, "not yours"), "engine.api_key: "),
        (refuse(404, "The model `m` does not exist."), "engine.model: "),
        (refuse(404, "Not Found"), "engine.url: "),
        (refuse(405, "Method Not Allowed"), "engine.url: "),
        (refuse(307, "", Location="https://other/v1"), "engine.url: .*https://other/v1"),
        (refuse(429, "You exceeded your current quota"), "when there is credit"),
        (refuse(402, "pay"), "when there is credit"),
    ],
)
def test_an_error_of_every_row_stops_the_run_and_names_the_key_of_the_job(monkeypatch, response, words):
    with ChatServer(lambda received: response) as server:
        engine_thread = EngineThread(HttpEngineType().open(build_job(server.url, model={}, api_key=KEY)))
        with pytest.raises(PipelineError, match=f"(?i){words}") as caught:
            engine_thread.answer_requests([build_request("1"), build_request("2")])
        engine_thread.close()
    assert KEY not in str(caught.value)


def test_a_wrong_api_key_or_model_is_found_before_the_first_row():
    with ChatServer(models=refuse(401, "no")) as server, pytest.raises(JobError, match=r"engine\.api_key"):
        HttpEngineType().open(build_job(server.url, api_key=KEY))
    with (
        ChatServer(models=("a", "b")) as server,
        pytest.raises(JobError, match=r"engine\.model: c is named, and .* serves a, b"),
    ):
        HttpEngineType().open(
            build_job(server.url).model_copy(
                update={"engine": build_job(server.url).engine.model_copy(update={"model": "c"})}
            )
        )
    with ChatServer(models=("a", "b")) as server, pytest.raises(JobError, match=r"engine\.model: nothing is named"):
        HttpEngineType().open(build_job(server.url))


@pytest.mark.parametrize(
    "models", [refuse(500, "no"), ServerResponse(200, "<html>who are you?</html>"), refuse(404, "no such page")]
)
def test_a_server_without_a_list_of_models_works_when_the_job_names_one(models):
    with ChatServer(models=models) as server:
        named = build_job(server.url)
        named = named.model_copy(update={"engine": named.engine.model_copy(update={"model": "m"})})
        HttpEngineType().open(named).close()
        with pytest.raises(JobError, match=r"engine\.(model|url): "):
            HttpEngineType().open(build_job(server.url))


def test_settings_that_only_the_server_has_are_refused():
    job = build_job("http://a/v1", model={"quantize": "int4", "dtype": "bfloat16"})
    assert [line.partition(":")[0] for line in HttpEngineType().find_problems(job)] == [
        "model.dtype",
        "model.quantize",
    ]
    assert HttpEngineType().find_problems(build_job("http://a/v1")) == []


def test_closing_cancels_the_requests_in_flight():
    with ChatServer(lambda received: ServerResponse(200, "x", hang_s=60.0)) as server:
        engine_thread = EngineThread(HttpEngineType().open(build_job(server.url)))
        waiting = [engine_thread.submit_request(build_request(str(number))) for number in range(3)]
        while len(server.received) < 3:
            time.sleep(0.01)
        started = time.monotonic()
        engine_thread.close()
        assert time.monotonic() - started < 20
        assert all(isinstance(future.exception(1), RuntimeError) for future in waiting)


def test_no_more_requests_are_in_flight_than_the_job_allows():
    lock, in_flight, most_in_flight = threading.Lock(), [0], [0]

    def respond(received):
        with lock:
            in_flight[0] += 1
            most_in_flight[0] = max(most_in_flight[0], in_flight[0])
        time.sleep(0.05)
        with lock:
            in_flight[0] -= 1
        return echo_prompt(received)

    with ChatServer(respond) as server:
        get_answers(server, *(build_request(str(number)) for number in range(40)), concurrency=5)
    assert 1 < most_in_flight[0] <= 5


@pytest.mark.parametrize(
    "limit", [{"requests_per_minute": 600}, {"tokens_per_minute": 6000}], ids=lambda limit: next(iter(limit))
)
def test_requests_keep_to_the_rate_that_an_account_allows(limit):
    """The server counts ten tokens for each reply, so both limits are ten requests a second."""
    arrived_at = []

    def respond(received):
        arrived_at.append(time.monotonic())
        return echo_prompt(received)

    with ChatServer(respond) as server:
        get_answers(server, *(build_request(str(number)) for number in range(8)), concurrency=1, **limit)
    assert arrived_at[-1] - arrived_at[0] >= 0.5


def test_messages_do_not_show_the_api_key():
    with pytest.raises(JobError) as caught:
        parse_response(401, {}, json.dumps({"error": {"message": f"bad key {KEY}"}}), url="http://a/v1", api_key=KEY)
    assert "***" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("end", ["", "\n"])  # secrets in files often end with a line break
def test_the_api_key_is_sent_in_a_header_and_nowhere_else(end):
    with ChatServer() as server:
        engine = HttpEngineType().open(build_job(server.url, api_key=KEY + end))
        list(generate_replies(engine, [build_request("1")]))
        engine.close()
    received = server.received[0]
    assert received.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(received.body) + received.path + repr(engine.settings)


def test_the_request_is_not_modified():
    request = build_request("1", build_image(), schema=SCHEMA)
    before = replace(request)
    with ChatServer(lambda received: complete("{}")) as server:
        get_answers(server, request, guide="none")
    assert request == before
