"""The text that the demo prints."""

from __future__ import annotations

from pipeline.builtin.demo import format_example


def test_an_example_omits_null_fields(tmp_path):
    (tmp_path / "detect").mkdir()
    (tmp_path / "detect/100000.png").write_bytes(b"")
    answer = {"boxes": [{"bbox_2d": [1, 2, 3, 4], "label": "cross", "image": None}]}
    assert '\n  answer {"boxes": [{"bbox_2d": [1, 2, 3, 4], "label": "cross"}]}\n' in format_example(
        "detect", tmp_path, answer, {}
    )
