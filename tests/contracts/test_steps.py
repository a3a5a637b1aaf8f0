"""What every step of preparation promises, and a crop of a test's own that only the registry names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.__main__ import main
from pipeline.errors import JobError
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.fingerprint import build_fingerprint_inputs
from pipeline.job.job_loader import parse_job
from pipeline.job.spec import Job
from pipeline.job.step_settings import build_step
from pipeline.media.base import FrameDecoder
from pipeline.media.clips import load_media
from pipeline.media.decode import ClipDecoder, build_decode_limits
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.media.resize import resize
from pipeline.media.steps.base import PreparationState, PreparationTools, runs_before_loading
from pipeline.model.engines.base import get_engine_type
from pipeline.registry import STEPS
from pipeline.step_timer import StepTimer
from pipeline.types import Clip, Item, MediaOptions, MediaRef, Turn
from tests.media.sample_media import PlainFrameRules, build_media_job, draw_pixels, encode_image, write_video
from tests.workspace import JobWorkspace

pytestmark = pytest.mark.process

ARGUMENTS: dict[str, dict[str, Any]] = {"crop": {"left": 0.25, "top": 0, "right": 1, "bottom": 0.5}}
CROP_OF_SCENE = {"left": 112 / 448, "top": 168 / 448, "right": 336 / 448, "bottom": 392 / 448}
JOB = """\
name: steps
input: {manifest: m.parquet}
model: {weights: "builtin:tiny"}
media:
  steps:
    - STEP
output: {path: out}
"""


def test_every_registered_step_has_arguments_here():
    assert ARGUMENTS.keys() == STEPS.keys()


@pytest.fixture(scope="module", params=[DecoderClient, HeaderDecoder])
def tools(request: pytest.FixtureRequest) -> Iterator[PreparationTools]:
    """Those of a run, and those of a plan."""
    job = build_media_job()
    decoder: FrameDecoder = request.param(build_decode_limits(job))
    with Fetcher(job) as fetcher, ClipDecoder(job, PlainFrameRules(), decoder) as clip_decoder:
        yield PreparationTools(fetcher, clip_decoder, PlainFrameRules(), StepTimer())


@pytest.fixture
def state(tmp_path) -> PreparationState:
    video = str(write_video(tmp_path / "a.mp4", 12))
    parts = ("Look: ", MediaRef(encode_image(draw_pixels(200, 120))), MediaRef(video), "What is it?")
    turns = (Turn("system", ("Be brief.",)), Turn("user", parts))
    return PreparationState(Item("a", "q", turns), turns, time.monotonic() + 60)


@pytest.mark.parametrize("name", STEPS)
def test_step_keeps_text_and_clips_know_their_original(name, state, tools):
    step = build_step(name, ARGUMENTS[name])
    order = [step, load_media] if runs_before_loading(step) else [load_media, step]
    for function in order:
        state = function(state, tools)
    assert [part for turn in state.turns for part in turn.parts if isinstance(part, str)] == [
        "Be brief.",
        "Look: ",
        "What is it?",
    ]
    clips = [part for turn in state.turns for part in turn.parts if isinstance(part, Clip)]
    assert {clip.kind for clip in clips} == {"image", "video"}
    for clip in clips:
        left, top, right, bottom = clip.source_region
        assert 0 <= left < right <= clip.source_size[0]
        assert 0 <= top < bottom <= clip.source_size[1]
        assert (clip.pixels.dtype, clip.pixels.shape[1]) == (np.uint8, 3)
        assert len(clip.times) == (len(clip.pixels) if clip.kind == "video" else 0)


@pytest.mark.parametrize("name", STEPS)
def test_step_changes_the_fingerprint_only_of_jobs_that_name_it(name):
    def inputs(**media: Any) -> dict[str, Any]:
        return build_fingerprint_inputs(build_media_job(**media), weights="w", schema_text=None)

    assert inputs(steps=[]) == inputs()
    assert "steps" not in inputs()["media"]
    assert inputs(steps=[{name: ARGUMENTS[name]}])["media"]["steps"] == ({name: ARGUMENTS[name]},)
    assert inputs(steps=name) == inputs(steps=[{name: {}}]) == inputs(steps=[{name: None}])


def test_crop_of_a_crop_is_taken_from_the_source(tools):
    upper_right = build_step("crop", {"left": 0.5, "bottom": 0.5})
    left_half = build_step("crop", {"right": 0.5})
    (turn,) = (Turn("user", (MediaRef(encode_image(draw_pixels(200, 120))),)),)
    state = PreparationState(Item("a", "q", (turn,)), (turn,), time.monotonic() + 60)
    for step in (upper_right, left_half, load_media):
        state = step(state, tools)
    (clip,) = state.turns[0].parts
    assert (clip.source_size, clip.region) == ((200, 120), (100, 0, 150, 60))


def test_crop_shows_the_pixels_of_its_region(tmp_path):
    job, pixels = build_media_job(), draw_pixels(224, 112)
    turns = (Turn("user", (MediaRef(encode_image(pixels)),)),)
    with Fetcher(job) as fetcher, ClipDecoder(job, PlainFrameRules()) as clip_decoder:
        tools = PreparationTools(fetcher, clip_decoder, PlainFrameRules(), StepTimer())
        state = PreparationState(Item("a", "q", turns), turns, time.monotonic() + 60)
        state = load_media(build_step("crop", {"left": 0.5, "right": 0.75, "bottom": 0.5})(state, tools), tools)
    (clip,) = state.turns[0].parts
    assert np.array_equal(clip.pixels[0].transpose(1, 2, 0), pixels[:56, 112:168])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("croop", r"job:6: media\.steps\.0: step 'croop' is not known; known: crop\. Did you mean 'crop'\?"),
        ("{crop: {lefft: 0.1}}", r"step 'crop' has no argument 'lefft'; .*Did you mean 'left'\?"),
        ("{crop: {left: much}}", r"crop\.left: must be a valid number"),
        ("{crop: {left: 2}}", r"crop\.left: must be less than or equal to 1"),
        ("{crop: {left: 0.9, right: 0.1}}", r"left must be less than right"),
        ("{crop: 3}", r"the arguments of step 'crop' are written"),
        ("{crop: {}, blur: {}}", r"a step is a name or one"),
        ("7", r"a step is a name or one"),
    ],
)
def test_step_that_cannot_be_built_is_a_job_error(step, message):
    with pytest.raises(JobError, match=message):
        parse_job(JOB.replace("STEP", step))


def test_server_that_fetches_media_itself_refuses_steps():
    engine = {"kind": "http", "url": "http://a/v1", "send": "uri"}
    job = Job.model_validate(build_media_job(steps="crop").model_dump() | {"engine": engine})
    assert any("engine.send" in problem for problem in get_engine_type(job).find_problems(job))


def test_explain_describes_media_steps(capsys):
    assert main(["check", "--explain"]) == 0
    assert "  steps: what is done to media before the model sees them" in capsys.readouterr().out


@dataclass(frozen=True)
class RightPart:
    """A toy crop: keeps the right part of each Clip, resizes it by the family's rules, and records the region."""

    width: float = 1.0

    def __call__(self, state: PreparationState, tools: PreparationTools) -> PreparationState:
        return state.map_parts(Clip, lambda clip: [self.crop_clip(clip, tools)])

    def crop_clip(self, clip: Clip, tools: PreparationTools) -> Clip:
        source_width, source_height = clip.source_size
        first_column = round(clip.size[0] * (1 - self.width))
        left = round(source_width * first_column / clip.size[0])
        size = tools.frame_rules.fit_image_size((source_width - left, source_height), MediaOptions())
        frames = clip.pixels[..., first_column:].transpose(0, 2, 3, 1)
        pixels = resize(np.ascontiguousarray(frames), size)
        return replace(clip, pixels=pixels, region=(left, 0, source_width, source_height))


def test_a_new_step_needs_a_file_and_a_line(workspace: JobWorkspace, monkeypatch, capsys):
    """`check`, `plan` and `run --local` use a step that only the registry names; boxes are in the original's pixels."""
    monkeypatch.setitem(STEPS, "right_part", f"{__name__}:RightPart")
    (workspace.folder / "a.png").write_bytes(encode_image(draw_pixels(448, 224)))
    workspace.write_manifest([{"id": "a", "image": "a.png", "hint": "h"}])
    boxes = {"boxes": [{"label": "circle", "bbox_2d": [21, 42, 105, 147]}]}
    job = str(
        workspace.write_job_file(
            prompt={"user": "Where is the circle?"},
            engine={"kind": "scripted", "default": json.dumps(boxes)},
            media={"steps": [{"right_part": {"width": 0.5}}]},
            answer={"schema": "boxes"},
        )
    )
    assert main(["check", job]) == 0
    capsys.readouterr()
    assert main(["plan", job, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["survey"]
    assert planned["failures"] == {}
    assert planned["model_pixels"] == {"image": 168 * 168}
    assert main(["run", job, "--local"]) == 0
    (row,) = workspace.read_answers()
    media = row["media"][0]
    assert (media["width"], media["height"]) == (448, 224)
    assert (media["model_width"], media["model_height"]) == (168, 168)
    assert row["answer"]["boxes"][0]["bbox_2d"] == [224 + 28, 56, 224 + 140, 196]


def test_built_in_model_finds_a_circle_in_a_crop(workspace: JobWorkspace):
    """The same answer as for the cropped file itself, moved to where the crop lies."""
    scene = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(scene).ellipse((60, 80, 140, 160), fill=(200, 30, 30))
    canvas = Image.new("RGB", (448, 448), (90, 90, 90))
    canvas.paste(scene, (112, 168))
    scene.save(workspace.folder / "scene.png")
    canvas.save(workspace.folder / "canvas.png")
    answers = {}
    for name, steps in (("scene", []), ("canvas", [{"crop": CROP_OF_SCENE}])):
        workspace.write_manifest([{"id": name, "image": f"{name}.png", "hint": "h"}])
        sections = {
            "engine": {"kind": "torch"},
            "answer": {"schema": "boxes"},
            "output": {"path": str(workspace.folder / name)},
        }
        assert workspace.run_job(media={"steps": steps}, prompt={"user": None}, **sections) == 0
        answers[name] = workspace.read_answers(name)[0]["answer"]["boxes"]
    assert answers["scene"], "the built-in model finds no circle"
    moved = [{**thing, "bbox_2d": shift_box(thing["bbox_2d"], 112, 168)} for thing in answers["scene"]]
    assert answers["canvas"] == moved


def shift_box(box: list[int], x: int, y: int) -> list[int]:
    return [box[0] + x, box[1] + y, box[2] + x, box[3] + y]
