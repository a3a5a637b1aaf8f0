"""Vectors from the features of media alone equal the mean of what transformers computes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.job.embedding_section import EmbeddingSection
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.vision_engine import VisionEngine
from pipeline.model.row_encoders.embedding_encoder import EmbeddingEncoder
from pipeline.types import Clip, Failure, Reply, Request, Turn
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES, Lab

pytestmark = pytest.mark.process


def build_request(lab: Lab, name: str, *parts: str | Clip) -> Request:
    encoder = EmbeddingEncoder(lab.family, EmbeddingSection(source="vision"))
    turns, encoded, _, _ = encoder.encode_turns((Turn("user", parts),))
    tokens = encoded.input_ids, encoded.positions, encoded.vision_tokens
    return Request(name, turns, *tokens, pooling=encoder.pooling)


def build_requests(lab: Lab) -> list[Request]:
    same = lab.make_image(4, 3)
    return [
        build_request(lab, "picture", lab.make_image(7, 5)),
        build_request(lab, "same", same),
        build_request(lab, "same-again", same),
        build_request(lab, "two", lab.make_image(3, 8), lab.make_image(2, 2)),
        build_request(lab, "film", lab.make_video(5, 3, 4)),
        build_request(lab, "both", lab.make_video(4, 2, 3), lab.make_image(5, 2)),
    ]


@torch.inference_mode()
def compute_reference(lab: Lab, request: Request) -> np.ndarray:
    model, arguments = lab.load_reference().model, lab.build_vision_arguments(request)
    features = []
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if f"pixel_values{suffix}" in arguments:
            compute = getattr(model, f"get_{kind}_features")
            out = compute(arguments[f"pixel_values{suffix}"], arguments[f"{kind}_grid_thw"])
            features += out.pooler_output
    return torch.cat(features).mean(0).numpy()


def compute_vectors(engine: VisionEngine, requests: list[Request]) -> dict[str, np.ndarray]:
    replies = {reply.id: reply for reply in generate_replies(engine, iter(requests))}
    engine.close()
    assert all(isinstance(reply, Reply) for reply in replies.values()), replies
    return {name: reply.vector for name, reply in replies.items()}


def open_engine(lab: Lab, folder=None, **options) -> VisionEngine:
    return VisionEngine(folder or lab.folder, lab.family, device="cpu", hang_s=60, dtype="float32", **options)


@pytest.mark.parametrize("lab", FAMILIES + HYBRID_FAMILIES, indirect=True)
@pytest.mark.parametrize("patches", [20, 4096])
def test_vectors_equal_the_mean_of_the_features(lab, patches):
    requests = build_requests(lab)
    vectors = compute_vectors(open_engine(lab, patches=patches), requests)
    for request in requests:
        np.testing.assert_allclose(vectors[request.id], compute_reference(lab, request), atol=1e-4)
    assert len(vectors["picture"]) == lab.family.vector_widths["vision"]


def test_no_weight_of_the_language_model_is_read(one_lab, tmp_path):
    folder = tmp_path / "tower"
    shutil.copytree(one_lab.folder, folder)
    weights = load_file(folder / "model.safetensors")
    tower = {name: weight for name, weight in weights.items() if "visual" in name}
    assert 0 < len(tower) < len(weights)
    save_file(tower, folder / "model.safetensors", {"format": "pt"})
    requests = build_requests(one_lab)[:2]
    vectors = compute_vectors(open_engine(one_lab, folder), requests)
    np.testing.assert_allclose(vectors["picture"], compute_reference(one_lab, requests[0]), atol=1e-4)


def test_a_clip_that_fails_costs_its_rows_only(one_lab):
    requests = build_requests(one_lab)
    engine = open_engine(one_lab)
    encode = engine.vision_cache.encode_slices
    poisoned = engine.vision_cache.add_clip(requests[0].clips[0])

    def fail(slices):
        if any(part.key == poisoned for part in slices):
            raise ValueError("a bad clip")
        encode(slices)

    engine.vision_cache.encode_slices = fail
    replies = {reply.id: reply for reply in generate_replies(engine, iter(requests))}
    assert isinstance(replies.pop("picture"), Failure)
    assert len(replies) == 5
    assert all(reply.vector is not None for reply in replies.values())
    engine.vision_cache.release_clip(poisoned)
    assert not engine.vision_cache.clips
    assert not engine.vision_cache.features_by_clip
    engine.close()
