"""The comments on cost in the jobs of `jobs/` and the column of hours in README.md, computed by `plan`.

    python -m tests.new_job.gallery_costs [TASK ...]       # writes those in the jobs anew

Plans need the configs of the models, which are here, and their tokenizer. Nothing is downloaded. The length of answers
is assumed: it is what such answers usually have, and `plan` says the same of them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.builtin import random_checkpoint
from pipeline.inspect.plan import JobPlan, plan_job
from pipeline.inspect.plan.gpus import GpuEstimate
from pipeline.inspect.plan.plan_text import format_range
from pipeline.job.job_loader import parse_job
from pipeline.model import family_loader
from pipeline.new_job.gallery import COST_COMMENT, JOBS_FOLDER, find_gallery_job, list_gallery
from tests import qwen_vocabulary
from tests.bench.engine import SHAPES
from tests.model.engines.fake_models import REAL, TEXT_QWEN3, VISION_QWEN3, WINDOWS

ROWS, SURVEYED_ROWS = 100_000, 50
PLANNED_ROWS = 2_000  # more than run at once on a GPU, so that costs grow with the number of rows
GPUS = ("H100", "L4")


@dataclass(frozen=True, slots=True)
class ExampleRows:
    media: str  # a key of MEDIA
    answer_tokens: int


MEDIA = {
    "photos": ("jpg", (4000, 3000)),
    "pages of A4 at 300 dpi": ("png", (2480, 3508)),
    "screenshots": ("png", (1920, 1080)),
    "charts": ("png", (1600, 1200)),
    "pictures": ("jpg", (1024, 1024)),
    "videos of a minute": ("mp4", (1280, 720)),
}
EXAMPLES = {
    "caption": ExampleRows("photos", 80),
    "chart": ExampleRows("charts", 400),
    "classify": ExampleRows("photos", 0),
    "detect": ExampleRows("photos", 200),
    "document": ExampleRows("pages of A4 at 300 dpi", 1000),
    "embed": ExampleRows("photos", 0),
    "endpoint": ExampleRows("photos", 200),
    "interface": ExampleRows("screenshots", 1500),
    "invoice": ExampleRows("pages of A4 at 300 dpi", 400),
    "points": ExampleRows("photos", 150),
    "products": ExampleRows("pictures", 60),
    "safety": ExampleRows("photos", 0),
    "video": ExampleRows("videos of a minute", 150),
}
QWEN3_CLIP_PIXELS = {"shortest_edge": 4096, "longest_edge": 24 * 1024 * 1024}  # of all frames of a video
TEXT_2B = TEXT_QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
TEXT_2B |= {"num_attention_heads": 16, "num_key_value_heads": 8}
VISION_2B = VISION_QWEN3 | {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048}
CONFIGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # model_type, text_config, vision_config
    "Qwen/Qwen2.5-VL-3B-Instruct": (
        "qwen2_5_vl",
        SHAPES["3b"]["text_config"] | {"tie_word_embeddings": True},
        SHAPES["3b"]["vision_config"] | WINDOWS,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": ("qwen2_5_vl", *REAL["qwen2_5_vl"]),
    "Qwen/Qwen3-VL-8B-Instruct": ("qwen3_vl", *REAL["qwen3_vl"]),
    "Qwen/Qwen3-VL-Embedding-2B": (
        "qwen3_vl",
        TEXT_2B | {"tie_word_embeddings": True},
        VISION_2B | {"deepstack_visual_indexes": [5, 11, 17]},
    ),
}


def write_checkpoint(folder: Path, weights: str) -> Path:
    """What a plan reads of a checkpoint: the config and the tokenizer."""
    model_type, text, vision = CONFIGS[weights]
    tokenizer = qwen_vocabulary.tokenizer()
    config = {"model_type": model_type, "text_config": text, "vision_config": vision, "dtype": "bfloat16"}
    config["tie_word_embeddings"] = text.get("tie_word_embeddings", False)
    folder.mkdir()
    random_checkpoint.write_json(folder / "config.json", config | random_checkpoint.find_vision_token_ids(tokenizer))
    for name, build in (
        ("tokenizer_config.json", random_checkpoint.build_tokenizer_config),
        ("preprocessor_config.json", random_checkpoint.build_preprocessor_config),
    ):
        random_checkpoint.write_json(folder / name, build(model_type))
    if model_type == "qwen3_vl":
        random_checkpoint.write_json(folder / "video_preprocessor_config.json", {"size": QWEN3_CLIP_PIXELS})
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_manifest(folder: Path, media: str) -> Path:
    """One file under many names: a plan reads its header, and tells rows by the names of their media."""
    ending, size = MEDIA[media]
    folder.mkdir()
    file = folder / f"original.{ending}"
    if ending == "mp4":
        write_clip(file, size, seconds=60)
    else:
        Image.new("L", size).save(file)
    rows = []
    for number in range(PLANNED_ROWS):
        name = f"{number}.{ending}"
        os.link(file, folder / name)
        rows.append(json.dumps({"id": str(number), "media": name, **PRODUCT}))
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder / "rows.jsonl"


def write_clip(path: Path, size: tuple[int, int], *, seconds: int, fps: int = 10) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        pixels = np.zeros((*size[::-1], 3), np.uint8)
        for number in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


PRODUCT = {
    "product_title": "Waterproof hiking boots for women, size 39, brown",
    "product_description": "Light boots of nubuck leather with a membrane. The sole grips on wet stone. " * 4,
    "potential_product_categories": [f"Apparel & Accessories > Shoes > Kind {number}" for number in range(20)],
}


def plan_gallery(folder: Path, tasks: Sequence[str]) -> Iterator[tuple[str, JobPlan]]:
    """The tasks, each with the plan of its job."""
    for task in tasks:
        job = find_gallery_job(task)
        example = EXAMPLES[task]
        manifest, checkpoint = folder / example.media.replace(" ", "-"), folder / "checkpoints"
        checkpoint.mkdir(exist_ok=True)
        text = job.text.replace("hf://datasets/Shopify/product-catalogue", "./pictures")
        parsed = parse_job(text, environment={"LLM_KEY": "key", "OUTPUT": str(folder / "out" / task)})
        if not manifest.exists():
            write_manifest(manifest, example.media)
        model = {}
        if parsed.model.weights:
            local = checkpoint / parsed.model.weights.replace("/", "-")
            model = {"weights": str(local if local.exists() else write_checkpoint(local, parsed.model.weights))}
        columns = {"manifest": (str(manifest / "rows.jsonl"),), "media": ("media",), "id": "id"}
        parsed = parsed.model_copy(
            update={
                "input": parsed.input.model_copy(update=columns),
                "model": parsed.model.model_copy(update=model),
            }
        )
        answer_tokens = example.answer_tokens or None
        yield task, plan_job(parsed, sample_rows=SURVEYED_ROWS, answer_tokens=answer_tokens, gpu_names=GPUS)


def format_cost(task: str, plan: JobPlan) -> list[str]:
    """The three lines of comment in a job."""
    example, scale = EXAMPLES[task], ROWS / plan.rows
    width, height = MEDIA[example.media][1]
    vision, text = plan.load.vision / plan.rows, (plan.load.prompt - plan.load.vision) / plan.rows
    tokens = f"{vision:,.0f} vision tokens and {text:,.0f} of text each"
    answers = f"answers of {example.answer_tokens:,}" if example.answer_tokens else "no answer is written"
    rows = f"{ROWS:,} {example.media}, {width}x{height}"
    if not plan.offers:
        totals = f"{scale * plan.load.prompt / 1e6:,.0f} million tokens in, {scale * plan.load.output / 1e6:,.0f} out"
        gpus = f"{totals}; with `engine: {{price: {{input: 0.2, output: 0.6}}}}`, the plan says what that costs"
    else:
        gpus = "; ".join(format_offer(offer, scale) for offer in plan.offers)
    return [
        f"# Cost of {rows}, as `plan` estimates it (it counts your own):",
        f"#   {tokens}, {answers}",
        f"#   {gpus}",
    ]


def format_offer(offer: GpuEstimate, scale: float) -> str:
    if offer.gpu_hours is None or offer.least_gpu_hours is None or offer.cost is None or offer.least_cost is None:
        return f"a row does not fit into one {offer.gpu}"
    hours = format_range(scale * offer.least_gpu_hours, scale * offer.gpu_hours)
    return f"one {offer.gpu} {hours} hours, {format_range(scale * offer.least_cost, scale * offer.cost)} USD"


def write_costs(text: str, lines: list[str]) -> str:
    """The text of a job with these lines before its first key, in place of those that are there."""
    bare = COST_COMMENT.sub("", text)
    place = re.search(r"^\w", bare, re.MULTILINE)
    assert place
    return bare[: place.start()] + "\n".join(lines) + "\n" + bare[place.start() :]


def list_costs(tasks: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
    """The job files of these tasks and their lines of today."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        load_once = cache(lambda _: qwen_vocabulary.tokenizer())  # it takes a second, and all models have the same
        monkeypatch.setattr(family_loader, "load_tokenizer", load_once)
        for task, plan in plan_gallery(Path(folder), tasks):
            yield JOBS_FOLDER / f"{task}.yaml", format_cost(task, plan)


def main() -> None:
    for path, lines in list_costs(sys.argv[1:] or [*list_gallery()]):
        path.write_text(write_costs(path.read_text(encoding="utf-8"), lines), encoding="utf-8")


if __name__ == "__main__":
    main()
