"""Computes the inputs that transformers' processors and models build from conversations, in its own process.

    python tests/model/oracle.py CASES.json RESULTS.pickle

transformers checks for torchvision once per process: its processors need it, and our code must work without it. A CPU
build of torch lacks the compiled part of torchvision, so two operators are declared first.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np

TOKENIZERS = {}
VIDEO_PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"


def create_pixels(seed, width, height, frames=None):
    """Random pixels, the same in both processes."""
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def compute_inputs(case, processors):
    """Compute ids, pixels, grids and positions of one conversation, without padding."""
    import torch

    folder = Path(case["folder"])
    if folder not in processors:
        processors[folder] = load_processor_and_model(folder)
    processor, model = processors[folder]
    text = processor.tokenizer.apply_chat_template(
        case["messages"],
        chat_template=json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
        tokenize=False,
        add_generation_prompt=True,
        add_vision_id=case.get("label", False),
        **case.get("template_options", {}),
    )
    qwen3 = model.config.model_type.startswith("qwen3")
    inputs = text.replace(VIDEO_PLACEHOLDER, "<|video_pad|>") if qwen3 else text  # 5.23 would nest the markers
    images = [create_pixels(*spec) for spec in case.get("images", [])]
    media = {"images": images} if images else {}
    if videos := case.get("videos", []):
        from transformers.video_utils import VideoMetadata

        media["videos"] = [create_pixels(spec["seed"], *spec["size"], spec["count"]) for spec in videos]
        media["video_metadata"] = [
            VideoMetadata(total_num_frames=spec["count"], fps=spec["fps"], duration=spec["count"] / spec["fps"])
            for spec in videos
        ]
        if qwen3:
            media |= {"do_sample_frames": True, "fps": 2}
        else:  # frames are chosen by qwen-vl-utils before the processor sees them
            for index, spec in enumerate(videos):
                media["videos"][index] = media["videos"][index][spec["indices"]]
                media["video_metadata"][index].frames_indices = spec["indices"]
            media["do_sample_frames"] = False
    outputs = processor(text=[inputs], return_tensors="pt", **media)
    position_keys = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "attention_mask")
    position_inputs = {key: outputs[key] for key in position_keys if key in outputs}
    positions, _ = model.model.get_rope_index(outputs["input_ids"], **position_inputs)
    result = {"text": text, "ids": outputs["input_ids"][0].numpy(), "positions": positions[:, 0].numpy()}
    for key in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        if key in outputs and case.get("pixels", True):
            result[key] = torch.as_tensor(outputs[key]).numpy()
    return result


def load_processor_and_model(folder):
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    kind = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}.get(config.model_type, "Qwen3VL")
    video = "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor"
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor.from_pretrained(folder),
        tokenizer=load_tokenizer(folder),
        video_processor=getattr(transformers, video)(cap_pixels_per_frame=False),
    )
    with torch.device("meta"):  # positions need no weights
        return processor, transformers.AutoModelForImageTextToText.from_config(config)


def load_tokenizer(folder):
    """Load a tokenizer once for all folders with the same vocabulary, because the real one takes seconds."""
    import transformers

    size = (folder / "tokenizer.json").stat().st_size
    if size not in TOKENIZERS:
        TOKENIZERS[size] = transformers.AutoTokenizer.from_pretrained(folder)
    return TOKENIZERS[size]


def main(cases_path, results_path):
    import torch

    torch.set_num_threads(1)
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    processors = {}
    cases = json.loads(Path(cases_path).read_text())
    Path(results_path).write_bytes(pickle.dumps([compute_inputs(case, processors) for case in cases]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
