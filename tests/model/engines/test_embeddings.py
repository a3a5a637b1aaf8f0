"""Vectors of the language model are those of transformers' last hidden states, alone and in any mix."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

from pipeline.job.embedding_section import EmbeddingSection
from pipeline.model import family_loader, hf_models
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.row_encoders.embedding_encoder import EmbeddingEncoder
from pipeline.types import Clip, Continuation, Failure, Reply, Request, Turn
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES, Lab, with_and_without_states

pytestmark = pytest.mark.process
EVERY_FAMILY = pytest.mark.parametrize("lab", FAMILIES + HYBRID_FAMILIES, indirect=True)
METHODS = ("last", "mean")


def build_request(lab: Lab, name: str, method: str, *parts: str | Clip) -> Request:
    encoder = EmbeddingEncoder(lab.family, EmbeddingSection(source="language", pool=method))
    turns, encoded, _, _ = encoder.encode_turns((Turn("user", parts),))
    tokens = encoded.input_ids, encoded.positions, encoded.vision_tokens
    return Request(f"{name} {method}", turns, *tokens, pooling=encoder.pooling)


def build_requests(lab: Lab) -> list[Request]:
    rows = {
        "text": ("the cat",),
        "picture": (lab.make_image(7, 5),),
        "both": (lab.make_image(3, 8), "and", lab.make_image(2, 2), "differ how?"),
        "film": (lab.make_video(4, 4, 4), "what happens?"),
        "long": ("a" * 150,),
    }
    return [build_request(lab, name, method, *parts) for name, parts in rows.items() for method in METHODS]


@torch.inference_mode()
def compute_reference(lab: Lab, request: Request) -> np.ndarray:
    ids = torch.from_numpy(request.input_ids).long()[None]
    positions = torch.from_numpy(request.positions).long()[:, None]
    kinds = (ids == lab.family.image_token).int() + 2 * (ids == lab.family.video_token).int()
    media = lab.build_vision_arguments(request)
    states = lab.load_reference().model(ids, position_ids=positions, mm_token_type_ids=kinds, **media).last_hidden_state
    return (states[0, -1] if request.pooling.method == "last" else states[0].mean(0)).numpy()


def open_engine(lab: Lab, folder: Path | None = None, **options) -> TorchEngine:
    sizes = {"slots": 3, "prefill_tokens": 4096, "patches": 4096, "kv_tokens": 2000, "output": "states"}
    return TorchEngine(folder or lab.folder, lab.family, device="cpu", **sizes | options)


def compute_vectors(engine: TorchEngine, requests) -> dict[str, np.ndarray]:
    replies = list(generate_replies(engine, requests))
    assert all(isinstance(reply, Reply) and not reply.text for reply in replies), replies
    return {reply.id: reply.vector for reply in replies}


def check_vectors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, vector in expected.items():
        np.testing.assert_allclose(found[name], vector, atol=1e-4, err_msg=name)


@EVERY_FAMILY
def test_every_family_gives_the_states_of_the_reference(lab):
    requests = build_requests(lab)
    expected = {request.id: compute_reference(lab, request) for request in requests}
    engine, split = open_engine(lab), open_engine(lab, prefill_tokens=64, slots=8)
    split.can_launch_ahead = True  # as on a GPU
    check_vectors(compute_vectors(engine, requests), expected)
    check_vectors(compute_vectors(engine, requests[:1]), {requests[0].id: expected[requests[0].id]})
    check_vectors(compute_vectors(split, requests), expected)
    assert not engine.vision_cache.features_by_clip
    assert len(expected["text last"]) == lab.family.vector_widths["language"]
    engine.close()
    split.close()


@with_and_without_states
def test_vectors_come_beside_answers_and_probabilities(one_lab):
    vectors = build_requests(one_lab)
    written = [one_lab.build_request(f"written {number}", "x" * number, max_new_tokens=9) for number in (3, 40)]
    scored = replace(written[0], id="scored", continuations=(Continuation((65, 66), 0, ""), Continuation((70,), 0, "")))
    requests = [vectors[0], written[0], *vectors[1:6], scored, *vectors[6:], written[1]]
    engine = open_engine(one_lab, output="logits", prefill_tokens=50)
    replies = {reply.id: reply for reply in generate_replies(engine, requests)}
    engine.close()
    expected = {request.id: compute_reference(one_lab, request) for request in vectors}
    check_vectors({name: replies[name].vector for name in expected}, expected)
    for request in written:
        tokens, _ = one_lab.generate_alone(request)
        assert replies[request.id].output_tokens == len(tokens)
    assert len(replies["scored"].continuation_logprobs) == 2


@with_and_without_states
def test_a_prefix_that_is_computed_once_is_a_part_of_every_mean(one_lab):
    beginnings = [f"{'a' * 300} {ending}" for ending in "bcd"]
    requests = [
        build_request(one_lab, str(number), method, text)
        for method in METHODS
        for number, text in enumerate(beginnings)
    ]
    engine = open_engine(one_lab, slots=1, kv_tokens=8000)
    vectors: dict[str, np.ndarray] = {}
    for request in requests:
        vectors |= compute_vectors(engine, [request])
    engine.close()
    check_vectors(vectors, {request.id: compute_reference(one_lab, request) for request in requests})


def test_in_bfloat16_vectors_are_about_the_same(one_lab):
    requests = [*build_requests(one_lab)[:4], one_lab.build_request("written", "the cat")]
    engine = open_engine(one_lab, output="logits", dtype="bfloat16")
    replies = {reply.id: reply for reply in generate_replies(engine, requests)}
    engine.close()
    assert replies["written"].text
    for request in requests[:4]:
        assert np.corrcoef(replies[request.id].vector, compute_reference(one_lab, request))[0, 1] > 0.99


@with_and_without_states
def test_prompts_are_packed_by_their_tokens_alone(one_lab):
    requests = [build_request(one_lab, str(number), "last", "a cat") for number in range(40)]
    engine = open_engine(one_lab, slots=4, kv_tokens=20_000, reuse_prefixes=False)
    assert len(compute_vectors(engine, requests)) == 40
    steps = engine.metrics()["steps"]
    engine.close()
    assert steps <= (10 if engine.scheduler.has_states else 2)


def test_a_row_that_fails_costs_itself_only(one_lab):
    requests = build_requests(one_lab)
    engine = open_engine(one_lab)
    step_runner = engine.step_runner

    def fail(batch, *unread):
        if any(sequence.request.id == "both mean" for sequence, _ in batch):
            raise ValueError("a bad row")
        return step_runner(batch, *unread)

    engine.step_runner = fail
    replies = {reply.id: reply for reply in generate_replies(engine, requests)}
    engine.close()
    assert isinstance(replies.pop("both mean"), Failure)
    expected = {request.id: compute_reference(one_lab, request) for request in requests if request.id in replies}
    check_vectors({name: reply.vector for name, reply in replies.items()}, expected)


@pytest.mark.parametrize("one_lab", ["qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.slow)], indirect=True)
def test_a_model_that_is_divided_among_processes_gives_the_same_vectors(one_lab):
    requests = build_requests(one_lab)
    engine = open_engine(one_lab, tensor_parallel=2, hang_s=60, prefill_tokens=60)
    vectors = compute_vectors(engine, requests)
    engine.close()
    check_vectors(vectors, {request.id: compute_reference(one_lab, request) for request in requests})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint in the layout of Qwen3-VL-Embedding: no head, and a tokenizer that ends every text with a token."""
    lab = Lab(tmp_path_factory.mktemp("whole"), "qwen3_vl", tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(lab.folder, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("lm_head")}
    assert len(kept) == len(weights) - 1
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ending = "<|endoftext|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {ending}", special_tokens=[(ending, tokenizer.token_to_id(ending))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    lab.folder, lab.family = folder, family_loader.load_family(folder)
    return lab


def test_a_published_checkpoint_of_embeddings_loads_and_follows_its_rule(published):
    template = json.loads((published.folder / "tokenizer_config.json").read_text())["chat_template"]
    rows = [("the cat",), (published.make_image(4, 3),), (published.make_image(2, 5), "a dog")]
    requests = [build_request(published, str(number), "last", *parts) for number, parts in enumerate(rows)]
    text = template_text(template, "Represent the user's input.", "the cat")
    fast = hf_models.import_transformers().PreTrainedTokenizerFast(
        tokenizer_file=str(published.folder / "tokenizer.json")
    )
    assert requests[0].input_ids.tolist() == fast(text)["input_ids"]
    assert fast(text)["input_ids"][-1] == fast.convert_tokens_to_ids("<|endoftext|>")
    engine = open_engine(published)
    vectors = compute_vectors(engine, requests)
    engine.close()
    assert engine.step_runner.loaded.lm_head._parameters == {}
    check_vectors(vectors, {request.id: compute_reference(published, request) for request in requests})


def template_text(template: str, system: str, user: str) -> str:
    """The prompt as the published code renders it."""
    from jinja2 import Environment

    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", system), ("user", user))
    ]
    return Environment().from_string(template).render(messages=messages, add_generation_prompt=True)


def test_the_vectors_are_those_of_a_whole_model_class(published):
    """`load_reference` reads the model that has a head; the published class has none, and the same states."""
    request = build_request(published, "a", "last", "the cat")
    transformers = hf_models.import_transformers()
    model = transformers.AutoModel.from_pretrained(published.folder).eval()
    ids = torch.from_numpy(request.input_ids).long()[None]
    with torch.inference_mode():
        states = model(ids, position_ids=torch.from_numpy(request.positions).long()[:, None]).last_hidden_state
    engine = open_engine(published)
    vector = compute_vectors(engine, [request])["a last"]
    engine.close()
    np.testing.assert_allclose(vector, states[0, -1].numpy(), atol=1e-4)
