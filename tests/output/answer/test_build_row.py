"""A reply becomes a row: parsed, checked, typed, and in the coordinates of the original."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import AnswerError
from pipeline.output.answer.build_row import build_row
from pipeline.output.answer.json_answer import read_json_answer
from pipeline.output.answer.reader import read_text
from pipeline.schema.schema import Schema
from pipeline.schema.schema_loader import load_schema
from pipeline.types import Clip, Item, MediaInfo, Reply, Request, Row, Sampling, Turn

CLIP = Clip("image", np.zeros((1, 3, 100, 200), np.uint8), (400, 200), uri="s3://a/b.jpg")
ITEM = Item("a", "hash", (), kept_values={"k": 1})
BOXES = load_schema("boxes", base_folder=Path())
CAPTION = load_schema("caption", base_folder=Path())


def build_request(*clips: Clip) -> Request:
    ids = np.zeros(7, np.int32)
    return Request("a", (Turn("user", clips),), ids, np.zeros((3, 7), np.int32), 3, Sampling(max_new_tokens=9))


def build_test_row(text: str, schema: Schema | None, **reply: object) -> Row:
    model_reply = Reply("a", text, **reply)  # type: ignore[arg-type]
    read_answer = partial(read_json_answer, schema=schema, coordinate_system="pixels") if schema else read_text
    return build_row(ITEM, build_request(CLIP), model_reply, read_answer, attempts=2)


def test_without_a_schema_the_text_is_the_answer() -> None:
    row = build_test_row("a dog", None, output_tokens=2, logprob=-0.5, thinking="hm")
    media_info = MediaInfo("image", "s3://a/b.jpg", 400, 200, 200, 100, 1)
    assert row == Row("a", "hash", {"k": 1}, "a dog", None, "stop", (media_info,), 3, 7, 2, 2, "hm", -0.5)


def test_boxes_are_mapped_and_the_models_numbers_are_kept_in_raw() -> None:
    row = build_test_row('{"boxes":[{"bbox_2d":[10,20,30,40],"label":"dog"}]}', BOXES)
    assert row.answer == {"boxes": [{"bbox_2d": [20, 40, 60, 80], "label": "dog", "image": None}]}
    assert row.raw == '{"boxes":[{"bbox_2d":[10,20,30,40],"label":"dog"}]}'
    assert row.flags == ()


def test_raw_is_empty_if_nothing_changed() -> None:
    assert build_test_row('{"caption":"a","tags":[],"language":"en"}', CAPTION).raw is None


def test_a_repaired_answer_has_a_flag() -> None:
    row = build_test_row("```json\n{'caption': 'a', 'tags': [], 'language': 'en',}\n```", CAPTION)
    assert row.answer == {"caption": "a", "tags": [], "language": "en"}
    assert row.flags == ("repaired",)
    assert row.raw == '{"caption":"a","tags":[],"language":"en"}'
    assert row.text.startswith("```")


def test_a_bare_list_becomes_the_only_field() -> None:
    row = build_test_row('[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]', BOXES)
    assert row.answer is not None
    assert row.answer["boxes"][0]["bbox_2d"] == [20, 40, 60, 80]
    assert row.flags == ("repaired",)


def test_violations_are_kept_on_the_row() -> None:
    row = build_test_row('{"boxes":[{"bbox_2d":[30,40,10,20],"label":"dog"}]}', BOXES)
    assert row.violations == ("box 1 (dog) has its corners in the wrong order",)
    assert row.flags == ("reordered",)


@pytest.mark.parametrize(
    ("text", "ending", "kind"),
    [
        ('{"caption":"a', "length", "cut_off"),
        ('{"caption":"a', "stop", "not_json"),
        ('{"caption":""}', "stop", "invalid_answer"),
        ("I cannot", "stop", "not_json"),
    ],
)
def test_an_unusable_answer_has_a_kind_and_keeps_its_text(text: str, ending: str, kind: str) -> None:
    with pytest.raises(AnswerError) as caught:
        build_test_row(text, CAPTION, finish=ending)
    assert (caught.value.kind, caught.value.text) == (kind, text)


def test_boxes_in_a_column_of_json_text_are_mapped_too(tmp_path: Path) -> None:
    (tmp_path / "tree.py").write_text(
        "from pydantic import BaseModel\n"
        "class Block(BaseModel):\n    bbox_2d: list[int]\n    inside: list['Block']\n"
        "class Page(BaseModel):\n    blocks: list[Block]\n"
    )
    said = '{"blocks":[{"bbox_2d":[0,0,100,50],"inside":[{"bbox_2d":[10,20,30,40],"inside":[]}]}]}'
    row = build_test_row(said, load_schema("tree.py:Page", base_folder=tmp_path))
    inner = '{"bbox_2d":[20,40,60,80],"inside":[]}'
    assert row.answer == {"blocks": [{"bbox_2d": [0, 0, 200, 100], "inside": [inner]}]}
    assert row.raw == said


def test_an_answer_without_a_place_is_an_error_and_not_an_empty_cell(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from pydantic import BaseModel\nclass One(BaseModel):\n    bbox_2d: list[int]\n")
    with pytest.raises(AnswerError) as caught:
        build_test_row('{"bbox_2d":[9,9,9,9]}', load_schema("one.py:One", base_folder=tmp_path))
    assert (caught.value.kind, caught.value.text) == ("no_place", '{"bbox_2d":[9,9,9,9]}')


@pytest.fixture
def default_recursion_limit() -> Iterator[None]:
    """Torch's compiler raises the limit of its process."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("default_recursion_limit")
def test_an_answer_that_is_nested_too_deeply_is_an_error_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "any.json").write_text('{"type":"object","properties":{"x":{}},"required":["x"]}')
    with pytest.raises(AnswerError) as caught:
        build_test_row('{"x":' + "[" * 300 + "]" * 300 + "}", load_schema("any.json", base_folder=tmp_path))
    assert (caught.value.kind, caught.value.message) == ("invalid_answer", "the answer is nested too deeply")
