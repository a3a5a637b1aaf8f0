"""A manifest row as an Item: every form of media, chats and options, and the errors for wrong ones."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from pipeline.errors import JobError, ReadError
from pipeline.job.spec import Job
from pipeline.manifest.column_selection import select_columns
from pipeline.manifest.items import build_item
from pipeline.manifest.media_cells import resolve_uri
from pipeline.manifest.row_reader import ManifestRow
from pipeline.types import Item, MediaOptions, MediaRef, Turn


def make_job(prompt: dict[str, str] | None = None, **wanted: Any) -> Job:
    return Job.model_validate(
        {
            "name": "a",
            "input": {"manifest": "rows.jsonl", **wanted},
            "prompt": {"user": "What?"} if prompt is None else prompt,
            "model": {"weights": "builtin:tiny"},
            "output": {"path": "out"},
        }
    )


def read_item(row: dict[str, Any], job: Job, *, base: str = "", default: str | None = None) -> Item:
    columns = select_columns(job, list(row), schema_prompt=default)
    return build_item(ManifestRow(row, "1", "q"), columns, job, schema_prompt=default, base_folder=base)


def list_sources(row: dict[str, Any], job: Job, **more: Any) -> list[Any]:
    return [
        part.source for turn in read_item(row, job, **more).turns for part in turn.parts if isinstance(part, MediaRef)
    ]


def chat(content: Any, media: Any = None, **row: Any) -> Item:
    messages = [{"role": "user", "content": content}]
    return read_item({"messages": messages, "uri": media, **row}, make_job({}, media="uri"))


def read_error(kind: str, row: dict[str, Any], job: Job) -> str:
    with pytest.raises(ReadError) as raised:
        read_item(row, job)
    assert raised.value.kind == kind
    return raised.value.message


def test_columns_are_selected_in_a_fixed_order():
    job = make_job({"system": "{a}", "user": "{b} {{c}} {a}"}, media=["u", "v"], id="k", keep=["z"])
    columns = select_columns(
        job, ["fps", "max_pixels", "z", "k", "a", "b", "v", "u", "max_new_tokens"], schema_prompt=None
    )
    assert columns.media == ("u", "v")
    assert columns.prompt == ("a", "b")
    assert columns.messages is None
    assert columns.options == ("max_pixels", "fps", "max_new_tokens")
    assert columns.id == "k"
    assert columns.kept == ("z",)
    assert columns.question_columns == ("u", "v", "a", "b", "max_pixels", "fps", "max_new_tokens")


@pytest.mark.parametrize(
    ("job", "key"),
    [
        (make_job(media="ury"), "input.media"),
        (make_job(media="uri", keep="ury"), "input.keep"),
        (make_job(media="uri", id="ury"), "input.id"),
        (make_job({}, messages="ury"), "input.messages"),
        (make_job({"user": "{ury}"}, media="uri"), "prompt.user"),
        (make_job({"user": "a", "system": "{ury}"}, media="uri"), "prompt.system"),
    ],
)
def test_a_missing_column_is_named_with_a_suggestion(job, key):
    with pytest.raises(JobError) as raised:
        select_columns(job, ["uri", "other"], schema_prompt=None)
    assert str(raised.value).startswith(f"{key}: the manifest has no column 'ury'")
    assert "'uri'?" in str(raised.value)


def test_exactly_one_key_must_say_what_to_ask():
    with pytest.raises(JobError, match="nothing to ask"):
        select_columns(make_job({}, media="uri"), ["uri"], schema_prompt=None)
    with pytest.raises(JobError, match="leave one of them out"):
        select_columns(make_job(messages="m"), ["m"], schema_prompt=None)
    assert select_columns(make_job({}, media="uri"), ["uri"], schema_prompt="Describe.").messages is None
    assert select_columns(make_job({}), ["messages"], schema_prompt="Describe.").messages == "messages"
    assert select_columns(make_job(media="uri"), ["uri", "messages"], schema_prompt=None).messages is None


def test_a_job_without_media_columns_is_told_which_columns_there_are():
    with pytest.raises(JobError, match=r"input\.media names no column.*the manifest has: id, picture"):
        select_columns(make_job(), ["id", "picture"], schema_prompt=None)


def test_a_folder_of_media_needs_no_column():
    assert select_columns(make_job(), ["path", "uri"], schema_prompt=None).media == ("uri",)


def test_media_come_before_the_question_and_a_system_turn_is_optional():
    assert read_item({"uri": "/a.png"}, make_job(media="uri")).turns == (Turn("user", (MediaRef("/a.png"), "What?")),)
    job = make_job({"system": "You see.", "user": "What?"}, media="uri")
    parsed = read_item({"uri": "/a.png"}, job)
    assert parsed.turns[0] == Turn("system", ("You see.",))
    assert (parsed.id, parsed.question) == ("1", "q")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", ["s3://b/in/a.png"]),
        (["a.png", "/b.png"], ["s3://b/in/a.png", "/b.png"]),
        (
            ["http://h/a", "data:image/png;base64,x", "file:///a"],
            ["http://h/a", "data:image/png;base64,x", "file:///a"],
        ),
        (b"\x89PNG", [b"\x89PNG"]),
        ({"bytes": b"x", "path": "a.png"}, [b"x"]),
        ({"bytes": None, "path": "a.png"}, ["s3://b/in/a.png"]),
    ],
)
def test_what_a_media_column_may_hold(value, expected):
    assert list_sources({"uri": value}, make_job(media="uri"), base="s3://b/in/") == expected


@pytest.mark.parametrize("nothing", [None, "", b"", [], [None], {"bytes": None, "path": None}])
def test_a_row_without_its_media_or_without_some_of_them_is_refused(nothing):
    assert "a is empty" in read_error("no_media", {"a": nothing}, make_job(media="a"))
    row = {"a": "/a", "b": nothing}
    assert "column b lacks a medium" in read_error("missing_media", row, make_job(media=["a", "b"]))
    assert list_sources(row, make_job(media=["a", "b"], require="any")) == ["/a"]


@pytest.mark.parametrize("cell", [["/a", None], ["", "/a"], '["/a", null]'])
def test_a_list_with_a_missing_medium_is_refused(cell):
    assert "column a lacks a medium" in read_error("missing_media", {"a": cell}, make_job(media="a"))
    assert list_sources({"a": cell}, make_job(media="a", require="any")) == ["/a"]


def test_a_chat_may_have_no_media_at_all_but_not_some_of_them():
    job = make_job({}, media=["a", "b"])
    text = [{"role": "user", "content": "hi"}]
    assert list_sources({"messages": text, "a": None, "b": None}, job) == []
    picture = [{"role": "user", "content": [{"type": "image"}]}]
    assert "column a lacks a medium" in read_error("missing_media", {"messages": picture, "a": None, "b": "/b"}, job)


@pytest.mark.parametrize("value", [3, {"x": 1}, [["a"]], 1.5, {"bytes": 3}, True])
def test_an_error_in_a_media_cell_names_the_column(value):
    assert "column uri" in read_error("row", {"uri": value}, make_job(media="uri"))


def test_values_of_a_row_are_filled_into_the_prompt_once():
    job = make_job({"system": "{a}{n}", "user": "{{a}} {a}: {n}"}, media="u")
    picture = MediaRef("/a.png")
    parsed = read_item({"u": "/a.png", "a": "{n}", "n": None}, job)
    assert parsed.turns == (Turn("system", ("{n}",)), Turn("user", (picture, "{a} {n}: ")))
    assert read_item({"u": "/a.png", "a": 1.5, "n": True}, job).turns[1].parts == (picture, "{a} 1.5: True")
    assert "column a" in read_error("row", {"u": "/a.png", "a": b"x", "n": 1}, job)


def test_nested_values_are_json_in_a_prompt_and_hold_no_bytes():
    job = make_job({"user": "{n}"}, media="u")
    row = {"u": "/a.png", "n": {"ü": [1, None, date(2026, 1, 2)]}}
    assert read_item(row, job).turns[0].parts[1] == '{"ü": [1, null, "2026-01-02"]}'
    assert "column n holds bytes" in read_error("row", {**row, "n": [b"x"]}, job)


def test_a_row_that_fills_no_word_into_the_prompt_is_refused():
    job = make_job({"user": "{q} {r}"}, media="u")
    assert "nothing is asked" in read_error("no_prompt", {"u": "/a.png", "q": None, "r": ""}, job)
    assert read_item({"u": "/a.png", "q": "what?", "r": None}, job).turns[0].parts[1] == "what? "


@pytest.mark.parametrize("prompt", ["Say {", "}", "{{a}", '{"a": {{"b"}}}}}'])
def test_a_brace_that_stands_alone_is_refused(prompt):
    for key in ("user", "system"):
        job = make_job({"user": "What?", key: prompt}, media="u")
        with pytest.raises(JobError, match=rf"prompt\.{key}: a [{{}}] stands alone; for a brace that is text"):
            select_columns(job, ["u"], schema_prompt=None)


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_a_message_without_content_is_refused(content):
    with pytest.raises(ReadError, match="message 1 has no content; give text or parts"):
        chat(content)


def test_the_prompt_of_a_schema_is_not_a_template():
    parsed = read_item({"uri": "/a"}, make_job({}, media="uri"), default='Write {"a": {uri}}.')
    assert parsed.turns[0].parts[1] == 'Write {"a": {uri}}.'


def test_options_of_a_row():
    row = {"uri": "/a", "max_pixels": 100.0, "fps": 1, "nframes": 8, "video_start": 0, "video_end": float("nan")}
    parsed = read_item({**row, "min_pixels": None, "max_new_tokens": 7}, make_job(media="uri"))
    medium = parsed.turns[0].parts[0]
    assert isinstance(medium, MediaRef)
    assert medium.options == MediaOptions(max_pixels=100, fps=1.0, frames=8, video_start=0.0)
    assert parsed.max_new_tokens == 7


@pytest.mark.parametrize("value", ["many", 1.5, True, 0, -1, [1], float("inf"), 10**400])
@pytest.mark.parametrize("name", ["max_pixels", "max_new_tokens"])
def test_an_error_in_an_option_names_the_column(name, value):
    assert f"column {name} " in read_error("row", {"uri": "/a", name: value}, make_job(media="uri"))


@pytest.mark.parametrize(
    ("part", "medium"),
    [
        ({"type": "image", "image": "/a"}, MediaRef("/a", "image")),
        ({"type": "image", "url": "http://h/a"}, MediaRef("http://h/a", "image")),
        ({"type": "image", "path": "/a"}, MediaRef("/a", "image")),
        ({"type": "image", "image": b"x"}, MediaRef(b"x", "image")),
        ({"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}, MediaRef("data:,x", "image")),
        ({"type": "input_image", "image_url": "http://h/a"}, MediaRef("http://h/a", "image")),
        ({"image": "/a"}, MediaRef("/a", "image")),
        ({"type": "video", "video": "/v", "fps": 1, "nframes": None}, MediaRef("/v", "video", MediaOptions(fps=1.0))),
        (
            {"type": "video_url", "video_url": {"url": "/v"}, "max_frames": 9},
            MediaRef("/v", "video", MediaOptions(max_frames=9)),
        ),
        ({"type": "video", "video": ["/1", "/2"]}, MediaRef(("/1", "/2"), "video")),
        ({"type": "image", "image": "/a", "video": None, "text": None, "fps": None}, MediaRef("/a", "image")),
        (
            {"type": "image", "image": "/a", "resized_width": 56},
            MediaRef("/a", "image", MediaOptions(resized_width=56)),
        ),
    ],
)
def test_parts_of_a_chat(part, medium):
    assert chat([part, {"type": "text", "text": "Hm?"}]).turns == (Turn("user", (medium, "Hm?")),)


def test_parts_without_a_source_take_the_media_columns_in_order():
    content = [{"type": "video", "fps": 4}, "then", {"type": "image", "image": None}]
    first, _, second = chat(content, ["/v", "/a"], fps=1.0, max_pixels=9).turns[0].parts
    assert first == MediaRef("/v", "video", MediaOptions(fps=4.0, max_pixels=9))
    assert second == MediaRef("/a", "image", MediaOptions(fps=1.0, max_pixels=9))


def test_a_chat_as_json_text_keeps_its_roles():
    messages = [("system", "S"), ("user", "<|im_end|>"), ("assistant", "A"), ("user", "B")]
    text = json.dumps([{"role": role, "content": content} for role, content in messages])
    parsed = read_item({"m": text}, make_job({"system": "job's"}, messages="m"))
    assert parsed.turns == tuple(Turn(role, (content,)) for role, content in messages)
    parsed = read_item(
        {"m": json.dumps([{"role": "user", "content": "B"}])}, make_job({"system": "job's"}, messages="m")
    )
    assert parsed.turns == (Turn("system", ("job's",)), Turn("user", ("B",)))


def test_relative_paths_of_parts_start_at_the_manifest_folder():
    messages = [{"role": "user", "content": [{"type": "video", "video": ["1.png", "/2.png"]}]}]
    assert list_sources({"messages": messages}, make_job({}), base="/in") == [("/in/1.png", "/2.png")]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("../../a.png", "s3://b/a.png"),
        (".././../in/./a.png", "s3://b/in/./a.png"),
        ("../../../a.png", "s3://b/../a.png"),  # refused when it is fetched
        ("x/../a.png", "s3://b/in/deep/x/../a.png"),
        ("..a.png", "s3://b/in/deep/..a.png"),
    ],
)
def test_relative_paths_lead_to_other_folders_of_a_bucket_and_not_out_of_it(path, uri):
    assert resolve_uri(path, "s3://b/in/deep") == uri


USER = {"role": "user", "content": "Q"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (None, "column messages"),
        ("not json", "column messages is not JSON"),
        ("[" * 100_000, "column messages is not JSON"),
        ([], "column messages"),
        ("{}", "column messages"),
        (["hello"], "message 1"),
        ([{"role": "tool", "content": "x"}], "role is str 'tool'"),
        ([USER, {"role": "assistant", "content": "A"}], "end it with the user's"),
        ([{"role": "user", "content": 3}], "content is int 3"),
        ([{"role": "user", "content": [3]}], "part 1 is int 3"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "type is str 'audio'"),
        ([{"role": "user", "content": [{}]}], "part 1: type"),
        ([{"role": "user", "content": [{"type": ["text"]}]}], "part 1: type"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "text is int 3"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has no source"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "image holds int 3"),
        ([{"role": "user", "content": [{"type": "image", "image": ["/a"]}]}], "image holds list"),
        ([{"role": "user", "content": [{"type": "video", "video": ["/a", None]}]}], "one is missing"),
        ([{"role": "user", "content": [{"type": "video", "video": []}]}], "one is missing"),
        ([{"role": "user", "content": [{"type": "image", "image": "/a", "max_pixels": "x"}]}], "part 1: max_pixels"),
        ('[{"role": "user", "content": "\\ud800"}]', "surrogate"),
    ],
)
def test_an_error_in_a_chat_names_its_place(messages, expected):
    assert expected in read_error("messages", {"messages": messages}, make_job({}))


def test_unused_media_are_refused():
    row = {"messages": [USER], "uri": ["/a", "/b"]}
    assert "hold 2 more" in read_error("messages", row, make_job({}, media="uri"))
