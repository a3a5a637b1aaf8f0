"""The report beside a truth, in a real browser: measures, confusions, and what was missed or invented."""

from __future__ import annotations

import json
import math
import re

import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.model.engines.scripted import ScriptedEngine
from pipeline.types import TokenLogprob
from tests.inspect.browser import Browser

pytestmark = pytest.mark.process

HOSTILE = '<img src=x onerror="window.pwned=1">'
DOG = {"bbox_2d": [28, 28, 112, 112], "label": "dog"}
SPURIOUS = {"bbox_2d": [168, 28, 252, 84], "label": "dog"}
MISSED = {"bbox_2d": [56, 140, 196, 224], "label": HOSTILE}
SCHEMA = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "note": {"type": "string"}}}


def run_rows(workspace, schema, answers, truths):
    rows = workspace.draw_images(len(answers))
    for number, row in enumerate(rows):
        Image.new("RGB", (280, 280), (200, 200, 210)).save(workspace.folder / row["image"])
        row |= {"hint": f"q{number}q", "truth": json.dumps(truths[number])}
    workspace.write_manifest(rows)
    replies = {f"q{number}q": json.dumps(answer) for number, answer in enumerate(answers)}
    workspace.run_job(
        input={"keep": ["truth"]},
        prompt={"user": "{hint}"},
        engine={"replies": replies},
        answer={"schema": schema},
        media={"max_pixels": 300_000},
    )
    page = workspace.folder / "page.html"
    output = str(workspace.folder / "out")
    assert main(["report", output, "--roots", str(workspace.folder), "--truth", "truth", "--to", str(page)]) == 0
    return page


def test_missed_and_spurious_boxes_are_marked_where_they_are(workspace):
    answers = [{"boxes": [DOG, SPURIOUS]}, {"boxes": [DOG]}]
    page = run_rows(workspace, "boxes", answers, [{"boxes": [DOG, MISSED]}, {"boxes": [DOG]}])
    browser = Browser()
    try:
        browser.open(page)
        card = "document.querySelector('article[data-tags~=wrong]')"
        for verdict, (left, top, right, bottom) in (("missed", MISSED["bbox_2d"]), ("spurious", SPURIOUS["bbox_2d"])):
            names = ("x", "y", "width", "height")
            drawn = browser.value(
                f"(r => {json.dumps(names)}.map(n => +r.getAttribute(n)))({card}.querySelector('rect.{verdict}'))"
            )
            assert drawn == pytest.approx([left, top, right - left, bottom - top], abs=1)
        dash = f"getComputedStyle({card}.querySelector('rect.missed')).strokeDasharray"
        assert browser.value(dash) != "none"
        assert browser.value("document.querySelectorAll('rect.box').length") == 4
        assert browser.value("document.querySelectorAll('article[data-tags~=wrong]').length") == 1
        assert f"missed: {HOSTILE}" in browser.value("document.body.textContent")
        assert browser.value("window.pwned") is None
        assert "AP50:95" in browser.value("document.getElementById('scores').innerText")
    finally:
        browser.close()


def test_values_that_differ_and_confusions_are_shown(workspace):
    (workspace.folder / "kind.json").write_text(json.dumps({**SCHEMA, "required": ["kind", "note"]}))
    answers = [{"kind": "dog", "note": "a"}, {"kind": "cat", "note": "b"}, {"kind": "cat", "note": "c"}]
    truths = [{"kind": "cat", "note": HOSTILE}, {"kind": "cat", "note": "b"}, {"kind": "cat"}]
    html = run_rows(workspace, f"{workspace.folder}/kind.json", answers, truths).read_text()
    assert '<p class="warn">kind: the truth is cat</p>' in html
    assert '<p class="warn">note: the truth is &lt;img src=x onerror=' in html
    assert html.count('class="warn"') == 2
    assert "kind</bdi>: what was confused" in html
    assert '<td class="number">2</td><td class="number">1</td>' in html


def test_the_answer_to_another_question_stands_beside_each_that_differs(workspace):
    (workspace.folder / "kind.json").write_text(json.dumps({**SCHEMA, "required": ["kind", "note"]}))
    workspace.write_manifest([{**row, "hint": f"q{n}q"} for n, row in enumerate(workspace.draw_images(2))])
    same = json.dumps({"kind": "cat", "note": "same"})
    for word, other in (("First", {"kind": "cat", "note": HOSTILE}), ("Second", {"kind": "dog", "note": "b"})):
        replies = {f"{word} q1q": json.dumps(other), "q0q": same}
        assert (
            workspace.run_job(
                prompt={"user": f"{word} {{hint}}"},
                engine={"replies": replies},
                answer={"schema": f"{workspace.folder}/kind.json"},
                allow_other_questions=True,
            )
            == 0
        )
    output, page = workspace.folder / "out", workspace.folder / "page.html"
    runs = sorted((output / "runs").glob("*/plan.json"))
    first = json.loads(runs[0].read_text())["fingerprint"]
    assert main(["report", str(output), "--against", first, "--to", str(page)]) == 0
    html = page.read_text()
    assert '<p class="warn">kind: the other answer is cat</p><p class="warn">note: the other answer is &lt;img' in html
    assert html.count('class="warn"') == 2
    assert "<dt>note</dt><dd><bdi>&lt;img src=x" in html
    assert "differ from the other answer <small>1</small>" in html
    assert HOSTILE not in html
    assert re.findall(r'<h2 id="id1"><bdi>(\w+)', html) == ["r1"]


def make_replies_sure(monkeypatch, sure_by_row):
    """Each reply is one token, with 0.9 where nothing else is said."""
    build_reply = ScriptedEngine.build_reply

    def build_sure_reply(engine, request):
        reply = build_reply(engine, request)
        logprob = math.log(sure_by_row.get(request.id, 0.9))
        object.__setattr__(reply, "token_logprobs", (TokenLogprob(len(reply.text), logprob),))
        return reply

    monkeypatch.setattr(ScriptedEngine, "build_reply", build_sure_reply)


def test_the_least_sure_value_is_no_score_of_a_box(workspace, monkeypatch):
    """A score is less than the confidence of any value in its box: rows with boxes would always come first."""
    make_replies_sure(monkeypatch, {"r1": 0.7})
    truths = [{"boxes": [DOG]}, {"boxes": []}, {"boxes": [DOG]}]
    html = run_rows(workspace, "boxes", [{"boxes": [DOG]}, {"boxes": [DOG]}, {"boxes": []}], truths).read_text()
    assert re.findall(r"least sure value (\d+)%", html) == ["70", "90"]


def test_reliability_is_drawn_and_the_least_sure_rows_come_first(workspace, monkeypatch):
    """A quarter of the values is as sure as the others and wrong; the last row is the least sure."""
    make_replies_sure(monkeypatch, {"r39": 0.5})
    schema = {"type": "object", "properties": {HOSTILE: {"enum": ["cat", "dog"]}}, "required": [HOSTILE]}
    (workspace.folder / "kind.json").write_text(json.dumps(schema))
    truths = [{HOSTILE: "dog" if number % 4 == 0 else "cat"} for number in range(40)]
    page = run_rows(workspace, f"{workspace.folder}/kind.json", [{HOSTILE: "cat"}] * 40, truths)
    browser = Browser()
    try:
        browser.open(page)
        diagram = "document.querySelector('svg.reliability')"
        assert browser.value("document.querySelectorAll('svg.reliability').length") == 1
        assert browser.value(f"{diagram}.parentElement.querySelector('h3').textContent") == HOSTILE
        circles = browser.value(f"[...{diagram}.querySelectorAll('circle')].map(c => +c.getAttribute('cx'))")
        assert len(circles) == 10
        assert circles == sorted(circles)
        assert max(circles) == pytest.approx(180)  # 0.9 of 200
        assert browser.value(f"{diagram}.querySelector('polyline').points.length") == 2
        assert browser.value("document.querySelector('article h2 bdi').textContent") == "r39"
        assert "least sure value 50%" in browser.value("document.querySelector('article').textContent")
        assert browser.value("window.pwned") is None
    finally:
        browser.close()
