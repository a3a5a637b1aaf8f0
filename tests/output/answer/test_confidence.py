"""Each value of an answer has the probability of the tokens that spell it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.output.answer.build_row import build_row
from pipeline.output.answer.confidence import build_confidence_field
from pipeline.output.answer.json_answer import read_json_answer
from pipeline.schema.schema import Schema
from pipeline.schema.schema_loader import load_schema
from pipeline.types import Clip, Item, Reply, Request, Row, TokenLogprob, Turn

CLIP = Clip("image", np.zeros((1, 3, 100, 200), np.uint8), (400, 200), uri="s3://a/b.jpg")
BOXES = load_schema("boxes", base_folder=Path())
CAPTION = load_schema("caption", base_folder=Path())
EVENTS = load_schema("events", base_folder=Path())


def write_schema(folder: Path, text: str) -> Schema:
    (folder / "s.json").write_text(text)
    return load_schema(str(folder / "s.json"), base_folder=folder)


def spell(tokens: Sequence[tuple[str, float | None]]) -> tuple[str, tuple[TokenLogprob, ...]]:
    """A text and its tokens, from pieces of text with the probability of each; None for a forced token."""
    text, located = "", []
    for piece, probability in tokens:
        text += piece
        located.append(TokenLogprob(len(text), None if probability is None else math.log(probability)))
    return text, tuple(located)


def spell_words(text: str, probabilities: dict[str, float]) -> tuple[str, tuple[TokenLogprob, ...]]:
    """One token for each word and each sign, certain unless its probability is given."""
    return spell([(piece, probabilities.get(piece, 1.0)) for piece in re.findall(r"\w+|\W", text)])


def build_test_row(spelled: tuple[str, tuple[TokenLogprob, ...]], schema: Schema, **options: Any) -> Row:
    text, tokens = spelled
    request = Request("a", (Turn("user", (CLIP,)),), np.zeros(7, np.int32), np.zeros((3, 7), np.int32))
    reply = Reply("a", text, token_logprobs=tokens)
    read_answer = partial(read_json_answer, schema=schema, coordinate_system="pixels")
    row = build_row(Item("a", "q", ()), request, reply, read_answer, **options)
    if row.confidence is not None:  # it fits the column
        pa.array([row.confidence], build_confidence_field(schema).type)
    return row


def test_numbers_have_the_product_and_text_the_geometric_mean_of_their_tokens() -> None:
    tokens = [
        ('{"boxes":[{"bbox_2d":[', 0.1),
        ("1", 0.9),
        ("0", 0.8),
        (",", 0.3),
        ("20", 0.7),
        (",30,", 0.6),
        ("40", 1.0),
    ]
    tokens += [('],"', 0.1), ('label":"', 0.1), ("big", 0.5), (" dog", 0.4), ('"}]}', 0.8)]
    confidence = build_test_row(spell(tokens), BOXES).confidence
    (box,) = confidence["boxes"]
    assert box["bbox_2d"] == pytest.approx([0.72, 0.7, 0.6, 1.0])
    assert box["label"] == pytest.approx((0.5 * 0.4 * 0.8) ** (1 / 3))
    assert box["image"] is None
    assert box["score"] == pytest.approx(0.72 * 0.7 * 0.6 * 0.5 * 0.4 * 0.8)


def test_choices_and_dates_have_the_product(tmp_path: Path) -> None:
    schema = (
        '{"type":"object","properties":{"kind":{"enum":["red car","bus"]},"day":{"type":"string","format":"date"}}}'
    )
    text = '{"kind":"red car","day":"2026-11-29"}'
    spelled = spell_words(text, {"red": 0.5, "car": 0.6, "2026": 0.5, "29": 0.2})
    confidence = build_test_row(spelled, write_schema(tmp_path, schema)).confidence
    assert confidence == {"kind": pytest.approx(0.3), "day": pytest.approx(0.1)}


def test_forced_tokens_do_not_count() -> None:
    tokens = [
        ('{"caption":"', None),
        ("a ", 0.5),
        ("dog", None),
        ('","tags":["', None),
        ("x", None),
        ('"],"language":"', None),
    ]
    confidence = build_test_row(spell([*tokens, ("en", 0.4), ('"}', None)]), CAPTION).confidence
    assert confidence == {"caption": pytest.approx(0.5), "tags": [None], "language": pytest.approx(0.4)}


@pytest.mark.parametrize(
    "text",
    [
        "```json\n{'caption': 'dog', 'tags': [], 'language': 'en',}\n```",
        'Here it is: {"caption": "dog", "tags": [], "language": "en"} as you asked.',
    ],
)
def test_a_repaired_answer_keeps_its_confidences(text: str) -> None:
    row = build_test_row(spell_words(text, {"dog": 0.25, "json": 0.1, "Here": 0.1}), CAPTION)
    assert row.flags == ("repaired",)
    assert row.confidence["caption"] == pytest.approx(0.5)  # of the word and the closing quote
    assert row.confidence["language"] == 1.0


def test_a_bare_list_that_becomes_the_only_field_keeps_its_confidences() -> None:
    row = build_test_row(spell_words('[{"bbox_2d": [10, 20, 30, 40], "label": "dog"}]', {"30": 0.5}), BOXES)
    assert row.flags == ("repaired",)
    assert row.confidence["boxes"][0]["bbox_2d"] == [1.0, 1.0, 0.5, 1.0]


def test_the_confidences_of_dropped_objects_go_with_them() -> None:
    boxes = [{"bbox_2d": [10, 10, 10, 10]}, {"bbox_2d": [11, 20, 30, 40]}]
    text = str([box | {"label": "dog"} for box in boxes]).replace("'", '"')
    row = build_test_row(spell_words(f'{{"boxes": {text}}}', {"10": 0.1, "11": 0.6}), BOXES)
    assert row.flags == ("dropped",)
    assert row.answer is not None
    assert len(row.answer["boxes"]) == 1
    assert [box["bbox_2d"][0] for box in row.confidence["boxes"]] == [pytest.approx(0.6)]


def test_null_has_a_confidence_but_an_object_that_is_null_has_none(tmp_path: Path) -> None:
    seller = '{"type":"object","properties":{"name":{"type":"string"}}}'
    members = f'"number":{{"type":["string","null"]}},"seller":{{"anyOf":[{seller},{{"type":"null"}}]}}'
    schema = write_schema(tmp_path, f'{{"type":"object","properties":{{{members}}}}}')
    confidence = build_test_row(spell_words('{"number":null,"seller":null}', {"null": 0.7}), schema).confidence
    assert confidence == {"number": pytest.approx(0.7), "seller": None}


def test_an_event_has_a_score() -> None:
    text = '{"events":[{"start":1,"end":2,"what":"falls"}]}'
    (event,) = build_test_row(spell_words(text, {"1": 0.5, "2": 0.5}), EVENTS).confidence["events"]
    assert event["score"] == pytest.approx(0.25)


def test_a_value_without_a_fixed_shape_has_the_least_confidence_of_its_parts(tmp_path: Path) -> None:
    schema = '{"type":"object","properties":{"any":{},"score":{"type":"integer"}}}'
    spelled = spell_words('{"any":{"a":[1,2],"b":"c"},"score":3}', {"1": 0.4, "2": 0.3, "3": 0.9})
    confidence = build_test_row(spelled, write_schema(tmp_path, schema)).confidence
    assert confidence == {"any": pytest.approx(0.3), "score": pytest.approx(0.9)}


def test_keys_that_are_free_keep_their_values_apart(tmp_path: Path) -> None:
    schema = write_schema(tmp_path, '{"type":"object","additionalProperties":{"type":"integer"}}')
    assert build_test_row(spell_words('{"a":1,"b":2}', {"2": 0.5}), schema).confidence == [("a", 1.0), ("b", 0.5)]


def test_nothing_is_claimed_where_the_values_are_not_found_in_the_text() -> None:
    text = '{"caption":"a","caption":"b","tags":[],"language":"en"}'
    assert build_test_row(spell_words(text, {}), CAPTION).confidence is None


def test_rows_with_an_unsure_value_are_flagged_for_review() -> None:
    spelled = spell_words('{"caption":"dog","tags":[],"language":"en"}', {"dog": 0.25})
    assert build_test_row(spelled, CAPTION, review_below=0.5001).flags == ("review",)
    assert build_test_row(spelled, CAPTION, review_below=0.4999).flags == ()
