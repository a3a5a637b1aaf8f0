"""What transformers' own processors make of pictures and clips, computed in a process of its own.

    python tests/media/oracle.py CASES.json ANSWERS.json

A process of its own because transformers remembers whether it saw torchvision, and ours must not. The
wheel's compiled part is missing for a CPU build of torch, so two operators are declared first.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

PATCHES = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}
COLOURS = {14: {}, 16: {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}}


def noise(seed, width, height, frames=1):
    """The same pixels here and there."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def digest(values, grid):
    values = np.ascontiguousarray(values, np.float32) + 0.0  # no negative zeros
    return [hashlib.sha256(values.tobytes()).hexdigest(), [int(side) for side in grid]]


def main(asked, answered):
    import torch

    torch.set_num_threads(1)
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import transformers
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tvF
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    def image(case):
        patch = PATCHES[case["family"]]
        size = {"shortest_edge": case["budget"][0], "longest_edge": case["budget"][1]}
        processor = transformers.Qwen2VLImageProcessor(patch_size=patch, size=size, **COLOURS[patch])
        out = processor(noise(case["seed"], *case["size"])[0], input_data_format="channels_last", return_tensors="np")
        return digest(out["pixel_values"], out["image_grid_thw"][0])

    def clip(case):
        """Frames and sizes of Qwen2 are qwen-vl-utils': it resizes, the processor does the rest."""
        frames = noise(case["seed"], *case["size"], case["count"])
        if case["family"] == "qwen3_vl":
            processor = Qwen3VLVideoProcessor(cap_pixels_per_frame=False)
            facts = VideoMetadata(total_num_frames=case["count"], fps=case["fps"], duration=case["count"] / case["fps"])
            out = processor(frames, video_metadata=[facts], do_sample_frames=True, fps=2, return_metadata=True)
            found = out["video_metadata"][0].frames_indices
            return [*digest(out["pixel_values_videos"], out["video_grid_thw"][0]), [int(index) for index in found]]
        planes = torch.from_numpy(frames[case["indices"]]).permute(0, 3, 1, 2)
        planes = tvF.resize(planes, case["target"][::-1], interpolation=InterpolationMode.BICUBIC, antialias=True)
        processor = transformers.Qwen2VLVideoProcessor(cap_pixels_per_frame=False)
        out = processor(planes, do_sample_frames=False, do_resize=False)
        return [*digest(out["pixel_values_videos"], out["video_grid_thw"][0]), case["indices"]]

    cases = json.loads(Path(asked).read_text())
    Path(answered).write_text(json.dumps([clip(case) if "count" in case else image(case) for case in cases]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
