"""Choices from one pass over the prompt, compared with guided JSON that answers the same question.

    python tests/bench/choices.py [--quick] [--rows N]

Drawn scenes, as resized pixels in memory, go through our engine with the built-in model on one thread, in turns:

    choices of 24    which of 24 shapes is furthest to the left, as in jobs/demo/classify.yaml: two or three tokens each
    enum of 24       the same as {"answer": ...} with an enum
    choices of 6     which color it has: one token each, so one pass is all
    enum of 6        the same as {"answer": ...} with an enum
    caption          the caption, tags and language that the model was trained to write: the first tag is the answer

Grammars force most tokens of an enum, and our engine computes what is forced in one step, so the enums are close. Rows
are pictures, where most of the time goes to the vision tower, and lines of text. Figures are CPU seconds of this
process, so a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from PIL import Image

from pipeline.builtin.drawing import COLORS, SHAPES
from pipeline.builtin.evaluate import JOBS_FOLDER
from pipeline.builtin.scenes import create_scene
from pipeline.job import job_loader
from pipeline.job.answer_section import AnswerSection
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.families.base import EncodedPrompt, Family
from pipeline.model.row_encoders.choice_encoder import ChoiceEncoder
from pipeline.run.preflight import get_base_folder
from pipeline.schema import schema_loader
from pipeline.types import Clip, MediaOptions, Reply, Request, Sampling, Turn
from tests.bench import harness

LABELS = [f"{color} {shape}" for color in COLORS for shape in SHAPES]


def build_enum_schema(labels: Sequence[str]) -> str:
    answer = {"type": "string", "enum": list(labels)}
    return json.dumps(
        {"type": "object", "properties": {"answer": answer}, "required": ["answer"], "additionalProperties": False}
    )


def draw_clip(number: int, family: Family) -> Clip:
    picture = create_scene("evaluate", "classify", 400_000 + number).draw_frame(0).convert("RGB")
    size = family.fit_image_size(picture.size, MediaOptions())
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)[None]
    return Clip("image", np.ascontiguousarray(pixels), picture.size)


def build_sides(questions: Sequence[Sequence[Turn]], family: Family) -> dict[str, list[Request]]:
    form = job_loader.load_job(JOBS_FOLDER / "classify.yaml").answer.choice_format
    caption = schema_loader.load_schema("caption", base_folder=get_base_folder())
    assert caption
    schemas = {"caption": caption.text}
    sides = dict[str, list[Request]]()
    for labels in (LABELS, list(COLORS)):
        encoder = ChoiceEncoder(family, AnswerSection(choices=dict.fromkeys(labels), choice_format=form))
        schemas[f"enum of {len(labels)}"] = build_enum_schema(labels)
        scored = sides[f"choices of {len(labels)}"] = []
        for number, turns in enumerate(questions):
            _, encoded, continuations, _ = encoder.encode_turns(turns)
            scored.append(replace(build_request(number, turns, encoded, budget=0), continuations=continuations))
    for name, text in schemas.items():
        requests = [build_request(number, turns, family.encode_turns(turns)) for number, turns in enumerate(questions)]
        sides[name] = [replace(request, schema_text=text, wants_confidence=True) for request in requests]
    return sides


def build_request(number: int, turns: Sequence[Turn], encoded: EncodedPrompt, *, budget: int = 96) -> Request:
    prompt = encoded.input_ids, encoded.positions, encoded.vision_tokens
    return Request(str(number), tuple(turns), *prompt, Sampling(max_new_tokens=budget))


def measure_cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=256)
    options = parser.parse_args()
    row_count, rounds = (48, 3) if options.quick else (options.rows, 5)
    torch.set_num_threads(1)
    folder = checkpoint_location.locate_checkpoint("builtin:tiny", None)
    family = family_loader.load_family(folder)
    question = job_loader.load_job(JOBS_FOLDER / "classify.yaml").prompt.user or ""
    question = question.replace("{{", "{").replace("}}", "}")
    kinds = {
        "picture": [[Turn("user", (draw_clip(number, family), question))] for number in range(row_count)],
        "text": [[Turn("user", (f"row {number}", question))] for number in range(row_count)],
    }
    engine = TorchEngine(folder, family, device="cpu", reuse_prefixes=False)  # every side asks about the same pictures
    ratios, figures, lines = dict[str, float](), dict[str, float](), []
    for kind, questions in kinds.items():
        sides = build_sides(questions, family)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(rounds + 1):  # the first warms up
            for name, requests in sides.items():
                replies: list[object] = []

                def answer(requests: list[Request] = requests, replies: list[object] = replies) -> None:
                    replies.extend(generate_replies(engine, requests))

                spent = measure_cpu_seconds(answer)
                assert all(isinstance(reply, Reply) for reply in replies)
                if turn:
                    seconds[name].append(spent)
        rates = {name: row_count / median(times) for name, times in seconds.items()}
        for count, name in ((24, "enum of 24"), (6, "enum of 6"), (24, "caption"), (6, "caption")):
            ratio = rates[f"choices of {count}"] / rates[name]
            ratios[f"{kind}: choices of {count}/{name}"] = ratio
            lines.append([kind, f"choices of {count}", rates[f"choices of {count}"], name, rates[name], ratio])
        figures |= {f"{kind}: {name}": rate for name, rate in rates.items()}
    engine.close()
    where = harness.describe_machine("torch", "transformers")
    print(f"{row_count} rows, builtin:tiny, one thread; {where}\n")
    print(
        harness.format_table(["rows", "side", "rows per CPU second", "against", "rows per CPU second", "ratio"], lines)
    )
    harness.print_report("choices", ratios=ratios, figures=figures, where=where)


if __name__ == "__main__":
    main()
