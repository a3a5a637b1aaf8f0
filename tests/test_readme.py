"""README.md and REFERENCE.md: commands are understood, the example step works, the picture is of today's report."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.command_line.parser import parse_arguments
from pipeline.prepare import Preparer
from pipeline.registry import STEPS
from pipeline.types import Item, Request
from tests.inspect.readme_picture import PICTURE, take_picture

ROOT = Path(__file__).parents[1]
README, REFERENCE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "REFERENCE.md"))
JOB = """\
name: gray
input: {manifest: m.jsonl, id: id, media: uri}
model: {weights: "builtin:tiny"}
engine: {kind: scripted, default: seen}
media: {steps: [grayscale]}
prompt: {user: "What is it?"}
output: {path: out}
"""


@pytest.fixture
def grayscale(monkeypatch, tmp_path):
    """The printed module, registered by the printed line, and a folder with a job that uses it."""
    (code,) = re.findall(r"```python\n# pipeline/media/steps/grayscale.py\n(.*?)```", REFERENCE, re.DOTALL)
    ((name, location),) = re.findall(r'`"(\w+)": "(pipeline\.media\.steps\.grayscale:\w+)"`', REFERENCE)
    module = ModuleType(location.partition(":")[0])
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(STEPS, name, location)
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "uri": "red.png"}) + "\n")
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)


def test_the_example_step_removes_the_color_of_what_the_model_sees(grayscale, monkeypatch, capsys):
    shown = []
    build_request = Preparer.build_request

    def spy(preparer: Preparer, item: Item) -> Request:
        request = build_request(preparer, item)
        shown.extend(clip.pixels for clip in request.clips)
        return request

    monkeypatch.setattr(Preparer, "build_request", spy)
    for command in (["check", "job.yaml"], ["plan", "job.yaml"], ["run", "job.yaml", "--local"]):
        assert main(command) == 0, capsys.readouterr().err
    assert {int(value) for value in shown[-1].ravel()} == {85}


def test_every_printed_command_line_is_understood():
    lines = re.sub(r"\\\n", " ", README + REFERENCE)
    printed = re.findall(r"^    (?:\S+/)?python -m pipeline (.+)$", lines, re.MULTILINE)
    assert len(printed) >= 10
    for line in printed:
        parse_arguments(None, shlex.split(line, comments=True))  # ends the process where it does not understand one


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) < 200
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall("^##+ (.*)", REFERENCE, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README + REFERENCE):
        path, _, anchor = target.partition("#")
        assert "://" in path or (ROOT / (path or "REFERENCE.md")).exists(), target
        assert path not in ("", "REFERENCE.md") or not anchor or anchor in headings, target


@pytest.mark.slow
@pytest.mark.process
def test_the_picture_is_of_todays_report(tmp_path):
    """Fonts differ between machines, so pictures are compared by their blurred outlines."""
    shown, today = Image.open(PICTURE).convert("RGB"), take_picture(tmp_path)
    assert shown.size == today.size
    small = [np.asarray(picture.resize((64, 40), Image.Resampling.BOX), dtype=float) for picture in (shown, today)]
    assert np.abs(small[0] - small[1]).mean() < 6, "python -m tests.inspect.readme_picture"
