"""Boxes, points and times are mapped to the original file, from any coordinate system of a model."""

import numpy as np
import pytest

from pipeline.output.answer.geometry import find_field_meanings, map_to_source
from pipeline.schema.json_schema import canonicalize_schema
from pipeline.types import Clip, Size
from tests.awkward_schemas import TEXT, WHOLE, either, listed, struct

BOXES = canonicalize_schema(
    struct(boxes=listed(struct(bbox_2d=listed(WHOLE), label=TEXT, image=WHOLE | {"x-means": "image"})))
)
POINT = canonicalize_schema(struct(point_2d=listed({"type": "number"})))
EVENTS = canonicalize_schema(
    struct(start={"type": "number", "x-means": "seconds"}, end={"type": "number", "x-means": "seconds"})
)
SIZES = [(1, 1), (7, 5), (28, 28), (100, 30), (333, 777), (640, 480), (1000, 1000), (1001, 999), (1920, 1080)]
SIZES += [(4032, 3024), (3024, 4032), (12_000, 200)]


def clip(source: Size, size: Size, **more: object) -> Clip:
    return Clip("image", np.zeros((1, 3, size[1], size[0]), np.uint8), source, **more)  # type: ignore[arg-type]


def box(*numbers: int, **more: object) -> dict[str, object]:
    return {"boxes": [{"bbox_2d": list(numbers), "label": "x", **more}]}


@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("size", [(28, 28), (616, 448), (1036, 1456)])
def test_pixels_of_the_resized_image_become_pixels_of_the_file(source: Size, size: Size) -> None:
    true = [source[0] * 0.25, source[1] * 0.125, source[0], source[1] * 0.75]
    model_box = [round(true[axis] * size[axis % 2] / source[axis % 2]) for axis in range(4)]
    mapped, flags = map_to_source(box(*model_box), BOXES, coordinate_system="pixels", clips=[clip(source, size)])
    step = max(source[0] / size[0], source[1] / size[1])
    if "dropped" not in flags:  # a picture of a few pixels: a part of it may be less than one
        assert np.abs(np.array(mapped["boxes"][0]["bbox_2d"]) - true).max() <= step / 2 + 0.5
        assert flags == ()
    assert "dropped" not in flags or min(source) < 8


@pytest.mark.parametrize("source", SIZES)
def test_thousandths_become_pixels_of_the_file_for_any_resized_size(source: Size) -> None:
    mapped, flags = map_to_source(
        box(250, 125, 1000, 750), BOXES, coordinate_system="thousandths", clips=[clip(source, (28, 56))]
    )
    if "dropped" not in flags:
        true = [source[0] * 0.25, source[1] * 0.125, source[0], source[1] * 0.75]
        assert np.abs(np.array(mapped["boxes"][0]["bbox_2d"]) - true).max() <= 0.5
    assert "dropped" not in flags or min(source) < 8


def test_a_point_keeps_its_fraction_where_the_schema_has_fractions() -> None:
    mapped_answer = map_to_source(
        {"point_2d": [500.5, 1.0]}, POINT, coordinate_system="thousandths", clips=[clip((300, 200), (28, 28))]
    )
    assert mapped_answer == ({"point_2d": [150.15, 0.2]}, ())


def test_corners_in_the_wrong_order_are_put_in_order() -> None:
    mapped_answer = map_to_source(
        box(30, 40, 10, 20), BOXES, coordinate_system="pixels", clips=[clip((100, 100), (100, 100))]
    )
    assert mapped_answer == (box(10, 20, 30, 40), ("reordered",))


def test_coordinates_outside_the_image_are_clamped() -> None:
    mapped_answer = map_to_source(
        box(50, 50, 130, 130), BOXES, coordinate_system="pixels", clips=[clip((200, 100), (100, 100))]
    )
    assert mapped_answer == (box(100, 50, 200, 100), ("clamped",))


def test_a_box_without_area_is_dropped_and_the_others_stay() -> None:
    answer = {"boxes": [*box(5, 5, 5, 9)["boxes"], *box(1, 2, 3, 4)["boxes"], *box(300, 0, 400, 9)["boxes"]]}  # type: ignore[misc]
    mapped, flags = map_to_source(answer, BOXES, coordinate_system="pixels", clips=[clip((10, 10), (10, 10))])
    assert mapped == box(1, 2, 3, 4)
    assert flags == ("dropped", "clamped")


def test_an_incomplete_box_is_dropped() -> None:
    answer = {"boxes": [{"bbox_2d": [1, None, 3, 4]}, {"bbox_2d": [1, 2, 3]}, {"bbox_2d": None}]}
    mapped_answer = map_to_source(answer, BOXES, coordinate_system="pixels", clips=[clip((10, 10), (10, 10))])
    assert mapped_answer == ({"boxes": [{"bbox_2d": None}]}, ("dropped",))


def test_boxes_of_several_images_are_mapped_by_their_image_number() -> None:
    clips = [clip((1000, 1000), (100, 100)), clip((50, 20), (100, 100))]
    assert map_to_source(box(10, 10, 20, 20, image=2), BOXES, coordinate_system="pixels", clips=clips)[0] == box(
        5, 2, 10, 4, image=2
    )
    assert map_to_source(box(10, 10, 20, 20, image=None), BOXES, coordinate_system="pixels", clips=clips)[0]["boxes"][
        0
    ]["bbox_2d"] == [100, 100, 200, 200]
    assert map_to_source(box(10, 10, 20, 20, image=3), BOXES, coordinate_system="pixels", clips=clips) == (
        {"boxes": []},
        ("dropped",),
    )


def test_seconds_of_a_clip_become_seconds_of_the_file() -> None:
    part = clip((10, 10), (28, 28), times=(30.0, 30.5, 31.0, 31.5), fps=2.0)
    spoken = {"start": 0.5, "end": 1.5}
    assert map_to_source(spoken, EVENTS, coordinate_system="pixels", clips=[part], time_origin="clip") == (
        {"start": 30.5, "end": 31.5},
        (),
    )
    spoken = {"start": 30.5, "end": 99.0}
    mapped = ({"start": 30.5, "end": 32.0}, ("clamped",))
    assert map_to_source(spoken, EVENTS, coordinate_system="thousandths", clips=[part], time_origin="source") == mapped


def test_only_mapped_seconds_are_rounded_to_milliseconds() -> None:
    part = clip((10, 10), (28, 28), times=(0.1, 4.6716667), fps=2.0)
    spoken = {"start": 0.2, "end": 9.0}
    mapped = ({"start": 0.3, "end": 5.172}, ("clamped",))
    assert map_to_source(spoken, EVENTS, coordinate_system="pixels", clips=[part], time_origin="clip") == mapped
    said = {"start": 0.12345, "end": 0.2}
    assert map_to_source(said, EVENTS, coordinate_system="pixels", clips=[part], time_origin="source") == (said, ())


def test_places_are_found_anywhere_in_the_schema() -> None:
    schema = canonicalize_schema(
        struct(a=either(struct(region=listed(WHOLE) | {"x-means": "box"}), struct(none={"type": "null"})))
    )
    assert find_field_meanings(schema) == {"region": "box"}
    mapped_answer, _ = map_to_source(
        {"a": {"region": [0, 0, 500, 500]}}, schema, coordinate_system="thousandths", clips=[clip((10, 20), (28, 28))]
    )
    assert mapped_answer == {"a": {"region": [0, 0, 5, 10]}}


def test_a_row_without_images_is_unchanged() -> None:
    assert map_to_source(box(1, 2, 3, 4), BOXES, coordinate_system="pixels", clips=[]) == (box(1, 2, 3, 4), ())


def test_an_answer_without_places_is_unchanged() -> None:
    schema = canonicalize_schema(struct(a=listed(WHOLE)))
    assert map_to_source({"a": [1, 2]}, schema, coordinate_system="pixels", clips=[clip((10, 10), (28, 28))]) == (
        {"a": [1, 2]},
        (),
    )


def test_nullable_places_and_lists_of_places_are_mapped() -> None:
    second = {"type": "number", "x-means": "seconds"}
    schema = canonicalize_schema(
        struct(start=either(second, {"type": "null"}), cuts=listed(second), hit={"$ref": "#/$defs/hit"})
    )
    schema["$defs"] = {"hit": second}
    part = clip((10, 10), (28, 28), times=(30.0, 31.0), fps=1.0)
    mapped_answer, _ = map_to_source(
        {"start": 0.5, "cuts": [0.0, 1.0], "hit": 1.5}, schema, coordinate_system="pixels", clips=[part]
    )
    assert mapped_answer == {"start": 30.5, "cuts": [30.0, 31.0], "hit": 31.5}


def test_a_list_of_boxes_loses_only_boxes_without_area() -> None:
    schema = canonicalize_schema(struct(areas=listed(listed(WHOLE)) | {"x-means": "box"}))
    where = {"coordinate_system": "thousandths", "clips": [clip((2000, 1000), (28, 28))]}
    assert map_to_source({"areas": []}, schema, **where) == ({"areas": []}, ())  # type: ignore[arg-type]
    mapped_answer = map_to_source({"areas": [[0, 0, 100, 100], [1200, 0, 1300, 5]]}, schema, **where)  # type: ignore[arg-type]
    assert mapped_answer == ({"areas": [[0, 0, 200, 100]]}, ("clamped", "dropped"))
