"""Tiny checkpoints of every family, requests for them, and what `generate` answers to each request alone."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import family_loader, hf_models
from pipeline.types import Clip, Request, Sampling, Turn

torch.set_num_threads(1)
hf_models.import_transformers().utils.logging.disable_progress_bar()
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
HYBRID_FAMILIES = ("qwen3_5", "qwen3_5_moe")
with_and_without_states = pytest.mark.parametrize("one_lab", ["qwen2_5_vl", "qwen3_5"], indirect=True)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
GAP = 1e-3  # where the two best tokens of the reference are closer than this, either is right

QUANTIZABLE_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 640,  # five groups: they do not come out even
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
}


class Lab:
    """A checkpoint with its family and the reference model."""

    def __init__(self, folder: Path, model_type: str, **config: object):
        self.folder = write_random_checkpoint(folder, model_type, **config)
        self.family = family_loader.load_family(self.folder)
        self.rng = np.random.default_rng(7)

    def make_image(self, width: int, height: int) -> Clip:
        """Width and height are in vision tokens."""
        side = self.family.patch_size * self.family.merge_size
        pixels = self.rng.integers(0, 256, (1, 3, height * side, width * side), dtype=np.uint8)
        return Clip("image", pixels, (width * side, height * side))

    def make_video(self, frames: int, width: int, height: int) -> Clip:
        side = self.family.patch_size * self.family.merge_size
        pixels = self.rng.integers(0, 256, (frames, 3, height * side, width * side), dtype=np.uint8)
        times = tuple(frame / 2 for frame in range(frames))
        return Clip("video", pixels, (width * side, height * side), times=times, fps=2.0)

    def build_request(self, name: str, *parts: str | Clip, **sampling: object) -> Request:
        turns = (Turn("user", parts),)
        encoded = self.family.encode_turns(turns)
        settings = Sampling(**{"max_new_tokens": 12, **sampling})
        return Request(name, turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, settings)

    @cache  # noqa: B019
    def load_reference(self):
        kind = family_loader.load_config(self.folder)["model_type"]
        return hf_models.get_model_class(kind).from_pretrained(self.folder).eval()

    @torch.inference_mode()
    def generate_alone(self, request: Request) -> tuple[list[int], list[float]]:
        """Greedy tokens, and for each the gap between the logits of the best and the second best token."""
        ids = torch.from_numpy(request.input_ids).long()[None]
        positions = torch.from_numpy(request.positions).long()
        kinds = (ids == self.family.image_token).int() + 2 * (ids == self.family.video_token).int()
        output = self.load_reference().generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.cat([torch.arange(ids.shape[1])[None], positions])[:, None],
            mm_token_type_ids=kinds,
            **self.build_vision_arguments(request),
            max_new_tokens=request.sampling.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        gaps = [(best[0] - best[1]).item() for best in (logits[0].topk(2).values for logits in output.logits)]
        return output.sequences[0, ids.shape[1] :].tolist(), gaps

    def build_vision_arguments(self, request: Request) -> dict[str, torch.Tensor]:
        """Arguments of the reference model. Patches are cut by their definition, without the engine's code."""
        arguments = {}
        for kind, values, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            clips = [clip for clip in request.clips if clip.kind == kind]
            if clips:
                arguments[values] = torch.cat([self.cut_patches(clip) for clip in clips])
                arguments[grids] = torch.tensor([self.compute_grid(clip) for clip in clips])
        return arguments

    def compute_grid(self, clip: Clip) -> tuple[int, int, int]:
        frames, _, height, width = clip.pixels.shape
        return -(-frames // 2), height // self.family.patch_size, width // self.family.patch_size

    def cut_patches(self, clip: Clip) -> torch.Tensor:
        (layers, rows, columns), side = self.compute_grid(clip), self.family.patch_size
        frames = [clip.pixels[min(frame, len(clip.pixels) - 1)] for frame in range(2 * layers)]
        mean, std = (np.array(value, np.float32)[:, None, None] for value in (self.family.mean, self.family.std))
        frames = [(frame / np.float32(255) - mean) / std for frame in frames]
        patches = []
        for layer in range(layers):
            pair = np.stack(frames[2 * layer : 2 * layer + 2], 1)  # [3, 2, height, width]
            for row, column in ((r, c) for r in range(0, rows, 2) for c in range(0, columns, 2)):
                for r, c in ((row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)):
                    patches.append(pair[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side].ravel())
        return torch.from_numpy(np.stack(patches))


@pytest.fixture(scope="session", params=FAMILIES)
def lab(request, tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def one_lab(request, tmp_path_factory) -> Lab:
    """One family, or those that a test is parametrized with."""
    return Lab(tmp_path_factory.mktemp("one"), getattr(request, "param", "qwen2_5_vl"))
