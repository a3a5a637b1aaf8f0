"""How well a row fits a query is what the published code of Qwen3-VL-Reranker computes."""

from __future__ import annotations

import json

import pytest
import torch
from jinja2 import Environment

from pipeline.job.rerank_section import RerankSection
from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.row_encoders.rerank_encoder import RerankEncoder
from pipeline.output.answer.rerank_answer import read_rerank_answer
from pipeline.types import Clip, Request, Turn
from tests.model.engines.conftest import Lab

pytestmark = pytest.mark.process

QUERY = "a cat on a mat"
SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
)
SYSTEM += 'answer can only be "yes" or "no".'
BEFORE = "<Instruct>: Given a search query, retrieve relevant candidates that answer the query.<Query>:a cat on a mat"
BEFORE += "\n<Document>:"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    """Its vocabulary has `yes` and `no` as single tokens, as the real one."""
    from tokenizers import AddedToken

    from pipeline.builtin.random_checkpoint import build_tiny_tokenizer

    tokenizer = build_tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("yes", normalized=False), AddedToken("no", normalized=False)])
    return Lab(tmp_path_factory.mktemp("reranker"), "qwen3_vl", vocabulary=tokenizer)


def build_request(lab: Lab, name: str, *parts: str | Clip) -> Request:
    encoder = RerankEncoder(lab.family, RerankSection(query=QUERY))
    turns, encoded, continuations, _ = encoder.encode_turns((Turn("user", parts),))
    tokens = encoded.input_ids, encoded.positions, encoded.vision_tokens
    return Request(name, turns, *tokens, continuations=continuations)


@torch.inference_mode()
def compute_reference(lab: Lab, request: Request) -> float:
    """The sigmoid of the last state times the difference of two rows of the head."""
    model, ids = lab.load_reference(), torch.from_numpy(request.input_ids).long()[None]
    positions = torch.from_numpy(request.positions).long()[:, None]
    kinds = (ids == lab.family.image_token).int() + 2 * (ids == lab.family.video_token).int()
    media = lab.build_vision_arguments(request)
    state = model.model(ids, position_ids=positions, mm_token_type_ids=kinds, **media).last_hidden_state[0, -1]
    yes, no = (lab.family.tokenizer.token_to_id(word) for word in ("yes", "no"))
    weight = model.lm_head.weight
    return torch.sigmoid(state @ (weight[yes] - weight[no])).item()


def test_probabilities_are_those_of_the_published_code(lab):
    rows = {
        "text": ("the cat",),
        "picture": (lab.make_image(7, 5),),
        "both": (lab.make_image(3, 4), "a dog"),
        "film": (lab.make_video(4, 3, 3),),
    }
    requests = [build_request(lab, name, *parts) for name, parts in rows.items()]
    engine = TorchEngine(lab.folder, lab.family, device="cpu", slots=2, kv_tokens=4000)
    replies = {reply.id: reply for reply in generate_replies(engine, requests)}
    engine.close()
    found = {name: read_rerank_answer(reply.continuation_logprobs).answer for name, reply in replies.items()}
    assert found == {request.id: pytest.approx(compute_reference(lab, request), abs=1e-4) for request in requests}
    assert len({round(value, 3) for value in found.values()}) > 1


def test_the_prompt_is_that_of_the_published_code(lab):
    template = json.loads((lab.folder / "tokenizer_config.json").read_text())["chat_template"]
    content = [{"type": "text", "text": BEFORE}, {"type": "text", "text": "the cat"}]
    messages = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}, {"role": "user", "content": content}]
    text = Environment().from_string(template).render(messages=messages, add_generation_prompt=True)
    plain = family_loader.load_tokenizer(lab.folder)
    request = build_request(lab, "a", "the cat")
    assert request.input_ids.tolist() == plain.encode(text, add_special_tokens=False).ids
    assert [part.token_ids for part in request.continuations] == [
        (plain.token_to_id("yes"),),
        (plain.token_to_id("no"),),
    ]
