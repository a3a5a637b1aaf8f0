"""A rectangle in a photo is decoded and resized, answered in the model's coordinates, and mapped back."""

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from PIL.Image import Transpose

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.fetch.blob import Blob
from pipeline.media.decode import ClipDecoder
from pipeline.model import family_loader
from pipeline.model.families.base import Family
from pipeline.output.answer.build_row import build_row
from pipeline.output.answer.json_answer import read_json_answer
from pipeline.schema.schema_loader import load_schema
from pipeline.types import Clip, Item, MediaRef, Reply, Request, Row, Size, Turn
from tests.media.sample_media import build_media_job

pytestmark = pytest.mark.process

SIZES = [(40, 40), (64, 48), (57, 113), (200, 100), (100, 200), (333, 251), (512, 512), (640, 480)]
SIZES += [(481, 641), (900, 300), (300, 900), (1200, 800)]
TRANSPOSE_BY_ORIENTATION = {  # from upright to how a camera stores it, by EXIF orientation
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
BOXES = load_schema("boxes", base_folder=Path())
assert BOXES is not None


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family_loader.load_family(write_random_checkpoint(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def clip_decoder(family: Family) -> Iterator[ClipDecoder]:
    with ClipDecoder(build_media_job(), family) as opened:
        yield opened


def write_photo(size: Size, orientation: int) -> tuple[bytes, list[int]]:
    """A JPEG as a camera stores it, and its bright rectangle in the upright image."""
    width, height = size
    rectangle = [width // 5, height // 4, width // 5 + width // 2, height // 4 + height // 3]
    upright = np.zeros((height, width, 3), np.uint8)
    upright[rectangle[1] : rectangle[3], rectangle[0] : rectangle[2]] = 255
    picture, turn = PIL.Image.fromarray(upright), TRANSPOSE_BY_ORIENTATION[orientation]
    stored, exif, file = picture.transpose(turn) if turn is not None else picture, PIL.Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    return file.getvalue(), rectangle


def write_model_answer(clip: Clip, family: Family) -> str:
    """The answer of a perfect model to the resized rectangle."""
    bright = clip.pixels[0, 0] > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    if family.coordinates == "thousandths":
        box = [1000 * box[axis] / clip.size[axis % 2] for axis in range(4)]
    return json.dumps({"boxes": [{"bbox_2d": [round(float(number)) for number in box], "label": "bright"}]})


def build_answered_row(clips: list[Clip], text: str, family: Family) -> Row:
    turns = (Turn("user", tuple(clips)),)
    prompt = family.encode_turns(turns)
    request = Request("a", turns, prompt.input_ids, prompt.positions, prompt.vision_tokens)
    item, reply = Item("a", "a", turns), Reply("a", text)
    read_answer = partial(
        read_json_answer, schema=BOXES, coordinate_system=family.coordinates, time_origin=family.time_origin
    )
    return build_row(item, request, reply, read_answer)


@pytest.mark.parametrize("orientation", TRANSPOSE_BY_ORIENTATION)
def test_boxes_are_in_pixels_of_the_upright_original(
    family: Family, clip_decoder: ClipDecoder, orientation: int
) -> None:
    for size in SIZES if orientation == 1 else SIZES[orientation % 3 :: 3]:
        data, rectangle = write_photo(size, orientation)
        clips = clip_decoder.decode(MediaRef(data), [Blob("a.jpg", "image", data)])
        assert clips[0].source_size == size
        row = build_answered_row(clips, write_model_answer(clips[0], family), family)
        assert row.answer is not None
        found = np.array(row.answer["boxes"][0]["bbox_2d"])
        step = [size[axis % 2] / clips[0].size[axis % 2] for axis in range(4)]
        grain = [size[axis % 2] / 1000 for axis in range(4)] if family.coordinates == "thousandths" else [0.0] * 4
        allowed = 0.5 + np.array(step) / 2 + np.array(grain) / 2
        assert (np.abs(found - rectangle) <= allowed).all(), (size, orientation, found, rectangle)
        assert (row.media[0].width, row.media[0].height) == size
        assert row.flags == ()
