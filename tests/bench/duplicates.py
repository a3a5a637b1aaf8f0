"""How many planted near duplicates `neighbours` finds in vectors of the built-in vision tower, and how many are right.

    PYTHONPATH=. python tests/bench/duplicates.py [--rows 10000] [--model tiny] [--quick]

Scenes are drawn, and one in ten is there a second time: resized to 70 %, compressed as a JPEG of quality 60, or cropped
by 5 % of its sides, in turn. Precision and recall count pairs, for several thresholds: of the vectors as they are, and
whitened.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.builtin.scenes import create_scene
from pipeline.inspect.neighbours.vector_search import Vectors, find_similar_pairs
from pipeline.inspect.neighbours.whitening import whiten_vectors
from pipeline.job.embedding_section import EmbeddingSection
from pipeline.media.resize import resize
from pipeline.model.checkpoint_location import locate_checkpoint
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.vision_engine import VisionEngine
from pipeline.model.family_loader import load_family
from pipeline.model.row_encoders.embedding_encoder import EmbeddingEncoder
from pipeline.types import Clip, MediaOptions, Request, Turn
from tests.bench import harness

CHANGES = ("resized", "recompressed", "cropped")
PLAIN_COSINES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
WHITENED_COSINES = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9)


def change_picture(picture: Image.Image, change: str) -> Image.Image:
    width, height = picture.size
    if change == "resized":
        return picture.resize((round(0.7 * width), round(0.7 * height)), Image.Resampling.BICUBIC)
    if change == "cropped":  # by 5 % of width and height
        return picture.crop((round(0.025 * width), round(0.025 * height), round(0.975 * width), round(0.975 * height)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=60)
    return Image.open(file)


def compute_vectors(model: str, pictures: list[tuple[int, str]]) -> Vectors:
    """Of scenes by number, changed or not."""
    folder = locate_checkpoint(f"builtin:{model}", None)
    family = load_family(folder)
    encoder = EmbeddingEncoder(family, EmbeddingSection(source="vision"))

    def build_request(index: int) -> Request:
        number, change = pictures[index]
        picture = create_scene("evaluate", "detect", number).draw_frame(0)
        picture = (change_picture(picture, change) if change else picture).convert("RGB")
        size = family.fit_image_size(picture.size, MediaOptions())
        pixels = resize(np.array(picture)[None], size)
        turns, encoded, _, _ = encoder.encode_turns((Turn("user", (Clip("image", pixels, picture.size),)),))
        tokens = encoded.input_ids, encoded.positions, encoded.vision_tokens
        return Request(str(index), turns, *tokens, pooling=encoder.pooling)

    engine = VisionEngine(folder, family, device="cpu", hang_s=600)
    vectors = np.zeros((len(pictures), family.vector_widths["vision"]), np.float32)
    for reply in generate_replies(engine, map(build_request, range(len(pictures)))):
        vectors[int(reply.id)] = reply.vector
    engine.close()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(
    vectors: Vectors, planted: dict[tuple[int, int], str], least_cosine: float, kind: str, ratios: dict[str, float]
) -> list[object]:
    found = {
        pair
        for first, second in find_similar_pairs(vectors, least_cosine, lambda share: None)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    }
    hits = Counter(planted[pair] for pair in found & planted.keys())
    totals = Counter(planted.values())
    precision, recall = hits.total() / max(1, len(found)), hits.total() / len(planted)
    ratios |= {f"{kind}precision at {least_cosine}": precision, f"{kind}recall at {least_cosine}": recall}
    return [f"{kind}{least_cosine}", precision, recall, *(hits[change] / totals[change] for change in CHANGES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = 500 if options.quick else options.rows
    originals = [(number, "") for number in range(count)]
    copies = [(number, CHANGES[number // 10 % 3]) for number in range(0, count, 10)]
    started = time.process_time()
    vectors = compute_vectors(options.model, originals + copies)
    seconds = time.process_time() - started
    planted = {(number, count + index): change for index, (number, change) in enumerate(copies)}
    lines, ratios = [], {}
    for least_cosine in PLAIN_COSINES:
        lines.append(measure(vectors, planted, least_cosine, "", ratios))
    whiten_vectors(vectors)
    for least_cosine in WHITENED_COSINES:
        lines.append(measure(vectors, planted, least_cosine, "whitened ", ratios))
    print(harness.format_table(["cosine", "precision", "recall", *CHANGES], lines))
    harness.print_report(
        f"duplicates-{options.model}",
        ratios=ratios,
        figures={"pictures_per_cpu_second": len(vectors) / seconds},
        where=harness.describe_machine("torch"),
    )


if __name__ == "__main__":
    main()
