"""Computes what transformers' processors and models make of conversations, in a process of its own.

    python tests/model/oracle.py QUESTIONS.json ANSWERS.pickle

transformers remembers whether it saw torchvision; its processors need it and our code must work without. The
compiled part of torchvision is missing for a CPU build of torch, so two operators are declared first.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np

TOKENIZERS = {}
VIDEO_PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"


def picture(seed, width, height, frames=None):
    """Random pixels, the same in both processes."""
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def answer(question, processors):
    """ids, pixels, grids and positions of one conversation, without its padding."""
    import torch

    folder = Path(question["folder"])
    if folder not in processors:
        processors[folder] = load(folder)
    processor, model = processors[folder]
    text = processor.tokenizer.apply_chat_template(
        question["messages"],
        chat_template=json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
        tokenize=False,
        add_generation_prompt=True,
        add_vision_id=question.get("label", False),
    )
    qwen3 = model.config.model_type.startswith("qwen3")
    inputs = text.replace(VIDEO_PLACEHOLDER, "<|video_pad|>") if qwen3 else text  # 5.23 would put markers into markers
    images = [picture(*spec) for spec in question.get("images", [])]
    media = {"images": images} if images else {}
    if videos := question.get("videos", []):
        from transformers.video_utils import VideoMetadata

        media["videos"] = [picture(spec["seed"], *spec["size"], spec["count"]) for spec in videos]
        media["video_metadata"] = [
            VideoMetadata(total_num_frames=spec["count"], fps=spec["fps"], duration=spec["count"] / spec["fps"])
            for spec in videos
        ]
        if qwen3:
            media |= {"do_sample_frames": True, "fps": 2}
        else:  # frames are chosen by qwen-vl-utils before the processor sees them
            for place, spec in enumerate(videos):
                media["videos"][place] = media["videos"][place][spec["indices"]]
                media["video_metadata"][place].frames_indices = spec["indices"]
            media["do_sample_frames"] = False
    out = processor(text=[inputs], return_tensors="pt", **media)
    wanted = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "attention_mask")
    place = {key: out[key] for key in wanted if key in out}
    positions, _ = model.model.get_rope_index(out["input_ids"], **place)
    found = {"text": text, "ids": out["input_ids"][0].numpy(), "positions": positions[:, 0].numpy()}
    for key in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        if key in out and question.get("pixels", True):
            found[key] = torch.as_tensor(out[key]).numpy()
    return found


def load(folder):
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VL"}
    kind = names[config.model_type]
    video = "Qwen3VLVideoProcessor" if kind == "Qwen3VL" else "Qwen2VLVideoProcessor"
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor.from_pretrained(folder),
        tokenizer=tokenizer(folder),
        video_processor=getattr(transformers, video)(cap_pixels_per_frame=False),
    )
    with torch.device("meta"):  # positions need no weights
        return processor, transformers.AutoModelForImageTextToText.from_config(config)


def tokenizer(folder):
    """One for all folders of the same vocabulary: loading the real one takes seconds."""
    import transformers

    size = (folder / "tokenizer.json").stat().st_size
    if size not in TOKENIZERS:
        TOKENIZERS[size] = transformers.AutoTokenizer.from_pretrained(folder)
    return TOKENIZERS[size]


def main(asked, answered):
    import torch

    torch.set_num_threads(1)
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    processors = {}
    questions = json.loads(Path(asked).read_text())
    Path(answered).write_bytes(pickle.dumps([answer(one, processors) for one in questions]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
