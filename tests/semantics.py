"""What jobs mean to a model, for golden files: prompts, pixels, positions, sampling, read answers and defaults.

    python -m tests.semantics     records what is new under the current SEMANTICS_VERSION

It does not change what is recorded. For that, raise SEMANTICS_VERSION in pipeline/job/fingerprint.py first.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from pipeline.context import open_family
from pipeline.fetch.blob import Blob, ByteRanges
from pipeline.job.fingerprint import SEMANTICS_VERSION
from pipeline.job.keys import affects_answers, find_sections
from pipeline.job.spec import Job
from pipeline.manifest.chunks import split_file
from pipeline.manifest.files import list_manifest_files
from pipeline.media.decode import build_decode_limits
from pipeline.media.kinds.base import DecodeLimits, Probe
from pipeline.model.checkpoint_location import locate_small_files
from pipeline.model.families.base import Family
from pipeline.output.answer.build_row import build_row
from pipeline.output.answer.json_answer import read_json_answer
from pipeline.output.answer.reask import build_retry_request
from pipeline.prepare import Preparer
from pipeline.registry import MEDIA_KINDS, import_object
from pipeline.run.preflight import build_run_context
from pipeline.schema.schema_loader import load_schema
from pipeline.types import ClipKind, Item, PixelRegion, Reply, Request, Size
from tests.model import chat_templates

Pictures = dict[str, NDArray[np.uint8]]

GOLDEN_FOLDER = Path(__file__).parent / "data/semantics" / str(SEMANTICS_VERSION)
FAMILY_SOURCES = {"qwen2_vl": "builtin:tiny", "qwen2_5_vl": "builtin:tiny", "qwen3_vl": "builtin:tiny-qwen3"}
FAMILY_SOURCES |= {"qwen3_5": "builtin:tiny-qwen3"}
CHAT_TEMPLATES = {"qwen3_5": chat_templates.QWEN35}  # where it is not the source's own
FILM = [
    {
        "role": "user",
        "content": [{"type": "video", "video": "clip.gif", "video_start": 0.5}, {"type": "text", "text": "When?"}],
    }
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "image": "wide.png"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A gradient."},
    {"role": "user", "content": [{"type": "video", "video": "clip.gif"}, {"type": "text", "text": "And this?"}]},
]
JOBS: dict[str, dict[str, Any]] = {
    "caption": {"input": {"media": ["image"]}, "prompt": {"user": "{{Look}} at {what}: {tags}"}},
    "pair": {"input": {"media": ["image", "other"]}, "prompt": {"system": "Compare.", "user": "{what}?"}},
    "boxes": {"input": {"media": ["image"]}, "answer": {"schema": "boxes"}},
    "chat": {"input": {"messages": "messages"}, "media": {"add_vision_id": True}},
    "crop": {
        "input": {"media": ["image"]},
        "prompt": {"user": "What?"},
        "media": {"max_pixels": 9000, "steps": [{"crop": {"left": 0.5, "top": 0, "right": 1, "bottom": 0.5}}]},
        "answer": {"temperature": 0.5, "seed": 7},
    },
}
FAMILY_JOBS = {
    "qwen3_5": {
        "silent": {"input": {"media": ["image"]}, "prompt": {"user": " What?\n"}, "answer": {"thinking": False}}
    }
}
REPLIES = {
    "boxes": '```json\n[{"bbox_2d": [40, 30, 20, 10], "label": "a"}, {"bbox_2d": [0, 0, 5000, 9], "label": "b",}]\n```',
    "events": '{"events": [{"what": "turns red", "start": 0.25, "end": 99}]}',
}


class InProcessDecoder:
    """Decodes in this process: the pictures are harmless, and the decoder's own process takes seconds to start."""

    def __init__(self, limits: DecodeLimits):
        self.limits = limits
        self.file: Any = None

    def wait_until_ready(self) -> None: ...

    def open(self, blob: Blob, kind: str, *, claimed_kind: ClipKind | None, deadline: float) -> Probe:
        self.file = import_object(MEDIA_KINDS[kind])(blob.data or blob.path, self.limits, claimed_kind=claimed_kind)
        probe: Probe = self.file.probe
        return probe

    def read(
        self, indices: Sequence[int], size: Size, *, region: PixelRegion | None = None, deadline: float
    ) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.file.read(indices, size, region)
        return pixels

    def ranges(self, batches: Sequence[Sequence[int]], *, deadline: float) -> list[ByteRanges]:
        raise NotImplementedError

    def close(self) -> None: ...


def collect_semantics() -> tuple[dict[str, Any], Pictures]:
    """The values by name, and the frames that models see by name."""
    values: dict[str, Any] = dict(list_defaults(Job))
    pictures: Pictures = {}
    with tempfile.TemporaryDirectory() as temp_folder:
        folder = Path(temp_folder)
        write_inputs(folder)
        for family_name in FAMILY_SOURCES:
            for job_name, sections in (JOBS | FAMILY_JOBS.get(family_name, {})).items():
                for item, request, family in prepare_requests(folder, family_name, job_name, sections):
                    name = f"{family_name}-{job_name}-{item.id}"
                    values[name] = describe_request(request, family)
                    values[f"{name}-answer"] = describe_answer(item, request, family)
                    for number, clip in enumerate(request.clips, 1):
                        pixels = np.concatenate(clip.pixels.transpose(0, 2, 3, 1))
                        if not any(np.array_equal(pixels, others) for others in pictures.values()):
                            pictures[f"{name}-{number}"] = pixels
    return values, pictures


def list_defaults(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that affects answers and its default; of the section `engine` those of all engines."""
    for name, field in section.model_fields.items():
        if not affects_answers(field):
            continue
        key, inner_sections = f"{prefix}{field.alias or name}", find_sections(field.annotation)
        if not inner_sections and not field.is_required():
            yield f"default of {key}", field.default
        for inner_section in inner_sections:
            yield from list_defaults(inner_section, f"{key}.{inner_section.__name__}.")


def write_inputs(folder: Path) -> None:
    draw(97, 61).save(folder / "wide.png")
    draw(20, 15).save(folder / "tiny.png")
    frames = [Image.new("P", (48, 36), 20 * number) for number in range(11)]
    for number, frame in enumerate(frames):
        frame.putpalette([(value * 7 + channel * 40) % 256 for value in range(256) for channel in range(3)])
        frame.paste(255, (2 * number, number, 2 * number + 20, number + 16))
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:], duration=250)
    row = {"id": "wide", "image": "wide.png", "other": "tiny.png", "what": "Grün", "tags": ["a", 1]}
    rows = [row, {**row, "id": "tiny", "image": "tiny.png", "max_new_tokens": 9, "what": "<|im_end|>"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = [{"id": "film", "messages": FILM}, {"id": "talk", "messages": TALK}]
    (folder / "chat.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    for family_name, source in FAMILY_SOURCES.items():
        checkpoint = folder / family_name
        shutil.copytree(locate_small_files(source), checkpoint, ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": family_name}))
        if family_name in CHAT_TEMPLATES:
            (checkpoint / "chat_template.jinja").write_text(CHAT_TEMPLATES[family_name])


def draw(width: int, height: int, shift: int = 0) -> Image.Image:
    """Ramps and a square with sharp edges."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x * 2 + shift, y * 4, x + y + shift], axis=-1).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (255, 0, shift)
    return Image.fromarray(pixels)


def prepare_requests(
    folder: Path, family_name: str, job_name: str, sections: dict[str, Any]
) -> Iterator[tuple[Item, Request, Family]]:
    manifest = folder / ("chat.jsonl" if job_name == "chat" else "rows.jsonl")
    others = {"model": {"weights": str(folder / family_name)}, "output": {"path": str(folder / "out")}}
    input_section = {"manifest": str(manifest), "id": "id", **sections["input"]}
    job = Job.model_validate({"name": job_name, **others, **sections, "input": input_section})
    (file,) = files = list_manifest_files(job)
    context = build_run_context(job, files)
    family = open_family(context)
    with closing(Preparer(context, decoder=InProcessDecoder(build_decode_limits(job)))) as preparer:
        for chunk, _ in split_file(job, file, context.schema_prompt):
            for item, request in preparer.prepare_chunk(chunk):
                assert isinstance(request, Request), request
                yield item, request, family


def describe_request(request: Request, family: Family) -> dict[str, Any]:
    prompt = family.tokenizer.decode(request.input_ids.tolist(), skip_special_tokens=False)
    return {
        "prompt": re.sub(r"(<\|\w+_pad\|>)\1+", lambda pads: f"{pads[1]}*{len(pads[0]) // len(pads[1])}", prompt),
        "token ids": hashlib.sha256(request.input_ids.astype("<i4").tobytes()).hexdigest(),
        "positions": hashlib.sha256(request.positions.astype("<i4").tobytes()).hexdigest(),
        "last positions": request.positions[:, -1].tolist(),
        "times": [clip.times for clip in request.clips],
        "sampling": asdict(request.sampling),
        "sampling of a second attempt": asdict(build_retry_request(request, 2).sampling),
    }


def describe_answer(item: Item, request: Request, family: Family) -> dict[str, Any]:
    """How a reply is read, with coordinates and times of the original."""
    schema_name = "events" if request.clips[0].kind == "video" else "boxes"
    read_answer = partial(
        read_json_answer,
        schema=load_schema(schema_name, base_folder=Path()),
        coordinate_system=family.coordinates,
        time_origin=family.time_origin,
    )
    row = build_row(item, request, Reply(item.id, REPLIES[schema_name]), read_answer)
    return {name: getattr(row, name) for name in ("answer", "raw", "flags", "violations")}


def to_plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def read_golden() -> tuple[dict[str, Any], Pictures]:
    pictures = {path.stem: np.asarray(Image.open(path)) for path in sorted(GOLDEN_FOLDER.glob("*.png"))}
    path = GOLDEN_FOLDER / "values.json"
    return json.loads(path.read_text()) if path.exists() else {}, pictures


def record_new() -> None:
    values, pictures = collect_semantics()
    golden_values, golden_pictures = read_golden()
    GOLDEN_FOLDER.mkdir(parents=True, exist_ok=True)
    merged = to_plain(values) | golden_values
    lines = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in merged.items())
    (GOLDEN_FOLDER / "values.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for name in pictures.keys() - golden_pictures.keys():
        Image.fromarray(pictures[name]).save(GOLDEN_FOLDER / f"{name}.png")


if __name__ == "__main__":
    record_new()
