"""The page that `report` writes, opened in a real browser, and its parts."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from pipeline.__main__ import main
from pipeline.builtin import scene_files as drawn
from pipeline.builtin.evaluate import JOBS_FOLDER
from pipeline.errors import OutputError
from pipeline.inspect.report import write_report
from pipeline.inspect.report.drawn_media import Palette, annotate_media, place_event, place_label
from pipeline.inspect.report.page import escape_control_characters
from pipeline.inspect.report.previews import MediaPreview, fit_size
from pipeline.job import job_loader
from pipeline.job.spec import Job
from pipeline.output.answer.annotations import Annotation, find_annotations
from pipeline.run import driver
from tests.inspect.browser import Browser

pytestmark = pytest.mark.process

HOSTILE = '<script>window.pwned=1</script>"><img src=x onerror="window.pwned=2">'
BIDI = "invoice\u202efdp.exe"
SIZE = (560, 420)  # a multiple of the token size within the budget, so it is not resized
BOX = (100, 60, 320, 200)
RED, PAPER = (255, 0, 0), (240, 240, 235)


def draw_box_image(path: Path) -> None:
    picture = Image.new("RGB", SIZE, PAPER)
    left, top, right, bottom = BOX
    ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=RED)
    picture.save(path)


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 224, 140
        for at in range(64):
            out.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (224, 140), (4 * at, 90, 90)))))
        out.mux(stream.encode(None))


def write_output(place: Path, name: str, rows: list[tuple[str, str, object]], schema: str) -> Path:
    """An output with these answers, as (id, file, answer)."""
    table = [{"id": id, "file": file, "hint": f"q{at}q", "note": HOSTILE} for at, (id, file, _) in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(table), place / f"{name}.parquet")
    replies = {f"q{at}q": json.dumps(answer) for at, (_, _, answer) in enumerate(rows)}
    job = {
        "name": name,
        "input": {"manifest": str(place / f"{name}.parquet"), "id": "id", "media": "file", "keep": "note"},
        "prompt": {"user": "{hint}"},
        "model": {"weights": "builtin:tiny"},
        "engine": {"kind": "scripted", "replies": replies},
        "answer": {"schema": schema},
        "media": {"max_pixels": 300_000},
        "limits": {"error_rate": 1},
        "output": {"path": str(place / name)},
    }
    driver.run_job(Job.model_validate(job), driver.RunOptions(runner="local"), say=lambda line: None)
    return place / name


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Answers with boxes; some rows try to inject markup."""
    place = tmp_path_factory.mktemp("boxes")
    draw_box_image(place / "a.png")
    (place / "bad<b>.png").write_bytes(b"<script>window.pwned=3</script>")
    (place / f"{BIDI}.png").write_bytes((place / "a.png").read_bytes())
    box = {"bbox_2d": BOX, "label": "red square"}
    rows: list[tuple[str, str, object]] = [(f"plain{at}", "a.png", {"boxes": [box]}) for at in range(4)]
    rows += [(HOSTILE, "a.png", {"boxes": [{**box, "label": HOSTILE}]})]
    rows += [("bidi", f"{BIDI}.png", {"boxes": [{**box, "label": BIDI}]})]
    rows += [("broken", "bad<b>.png", {"boxes": []}), ("wrong", "a.png", {HOSTILE: 1})]
    return write_output(place, "hostile", rows, "boxes")


@pytest.fixture(scope="module")
def page(boxes):
    path = boxes / "report.html"
    assert main(["report", str(boxes), "--roots", str(boxes.parent)]) == 0
    return path


@pytest.fixture(scope="module")
def browser():
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture
def opened_page(browser, page):
    browser.open(page)
    if folder := os.environ.get("REPORT_SCREENSHOTS"):
        browser.picture(whole=True).save(Path(folder) / "boxes.png")
    return browser


CARD = "document.querySelector('article[aria-labelledby=\"id1\"]')"


def test_boxes_lie_on_their_pixels(opened_page):
    opened_page.value(f"{CARD}.scrollIntoView({{block: 'center'}})")
    frame, rect = (
        opened_page.value(
            f"(r => [r.x, r.y, r.width, r.height])({CARD}.querySelector('{what}').getBoundingClientRect())"
        )
        for what in (".stage img", "rect.box")
    )
    scale = frame[2] / SIZE[0]
    left, top = (rect[axis] - frame[axis] for axis in (0, 1))
    wanted = [BOX[0] * scale, BOX[1] * scale, (BOX[2] - BOX[0]) * scale, (BOX[3] - BOX[1]) * scale]
    assert [left, top, rect[2], rect[3]] == pytest.approx(wanted, abs=1.0)
    seen = opened_page.picture()
    middle = (rect[1] + rect[3] / 2, rect[0] + rect[2] / 2)
    inside = [(rect[0] + 6, middle[0]), (rect[0] + rect[2] - 6, middle[0]), (middle[1], rect[1] + rect[3] - 6)]
    outside = [(rect[0] - 6, middle[0]), (rect[0] + rect[2] + 6, middle[0]), (middle[1], rect[1] + rect[3] + 6)]
    for places, colour in ((inside, RED), (outside, PAPER)):
        for x, y in places:
            assert seen.getpixel((round(x), round(y))) == pytest.approx(colour, abs=12)


def test_the_page_makes_no_requests_and_logs_nothing(opened_page, page):
    asked = [url for kind, url in opened_page.log if kind == "request" and not url.startswith("data:")]
    assert asked == [page.as_uri()]
    assert [entry for entry in opened_page.log if entry[0] != "request"] == []


def test_text_of_models_and_manifests_is_never_markup(opened_page):
    assert opened_page.value("window.pwned") is None
    assert opened_page.value("document.scripts.length") == 1
    assert (
        opened_page.value("[...document.images].filter(i => !i.src.startsWith('data:image/webp;base64,')).length") == 0
    )
    assert (
        opened_page.value("document.querySelectorAll('[onerror], [onclick], [style], b b, iframe, object').length") == 0
    )
    assert opened_page.value("document.body.textContent").count(HOSTILE) >= 3
    assert "\u202e" not in opened_page.value("document.documentElement.outerHTML")
    assert "invoice[U+202E]fdp.exe" in opened_page.value("document.body.textContent")


def test_an_injected_script_does_not_run(opened_page):
    outside = socket.create_server(("127.0.0.1", 0))
    outside.settimeout(0.1)
    image = f"<img src=http://127.0.0.1:{outside.getsockname()[1]}/x onerror=window.pwned=5>"
    opened_page.value(f"document.body.insertAdjacentHTML('beforeend', '{image}')")
    opened_page.value(
        "(s => { s.textContent = 'window.pwned = 4'; document.body.append(s) })(document.createElement('script'))"
    )
    opened_page.value("new Promise(done => setTimeout(done, 200))")
    assert opened_page.value("window.pwned") is None
    with outside, pytest.raises(TimeoutError):
        outside.accept()


SHOWN = "[...document.querySelectorAll('.card')].filter(c => !c.hidden).length"


def test_rows_are_filtered_by_words_and_by_kind(opened_page):
    assert opened_page.value(SHOWN) == 6
    opened_page.press("/")
    opened_page.type("plain2")
    assert opened_page.value(SHOWN) == 1
    assert opened_page.value("document.getElementById('count').value") == "1 of 6"
    opened_page.press("Escape")
    assert opened_page.value(SHOWN) == 6
    opened_page.value("document.querySelector('[data-show=marks]').click()")
    assert opened_page.value(SHOWN) == 6
    opened_page.press("/")
    opened_page.type("no such words")
    assert opened_page.value(SHOWN) == 0


def test_the_keyboard_moves_through_cards_and_enlarges_one(opened_page):
    opened_page.press("j")
    opened_page.press("j")
    assert opened_page.value("document.activeElement.getAttribute('aria-labelledby')") == "id2"
    opened_page.press("Enter")
    assert opened_page.value("document.getElementById('large').open")
    assert opened_page.value("document.querySelectorAll('#inside rect.box').length") == 1
    opened_page.press("k")
    assert opened_page.value("document.querySelector('#inside .card').getAttribute('aria-labelledby')") == "id1"
    opened_page.press("Escape")
    assert not opened_page.value("document.getElementById('large').open")
    assert opened_page.value("document.activeElement.getAttribute('aria-labelledby')") == "id1"


def test_errors_are_grouped_with_examples(opened_page):
    said = opened_page.value("document.getElementById('errors').innerText")
    assert "decode/unknown_format" in said
    assert "answer/invalid_answer" in said
    assert "broken" in said


def test_a_narrow_window_needs_no_sideways_scrolling(browser, page):
    browser.open(page, width=420)
    assert browser.value("document.documentElement.scrollWidth") <= 420


def test_events_are_drawn_on_a_time_line_below_the_frames(browser, tmp_path):
    write_video(tmp_path / "v.mp4")
    events = [{"what": "It begins.", "start": 0.0, "end": 2.0}, {"what": "It ends " * 20, "start": 6.0, "end": 8.0}]
    out = write_output(tmp_path, "events", [("v", "v.mp4", {"events": events})], "events")
    assert main(["report", str(out), "--roots", str(tmp_path), "--to", str(tmp_path / "e.html")]) == 0
    browser.open(tmp_path / "e.html")
    if folder := os.environ.get("REPORT_SCREENSHOTS"):
        browser.picture(whole=True).save(Path(folder) / "events.png")
    assert browser.value("document.querySelectorAll('.frame img').length") == 8
    line, first, second = (
        browser.value(f"(r => [r.x, r.width])(document.querySelectorAll('{what}')[{at}].getBoundingClientRect())")
        for what, at in (("svg.time", 0), (".event rect", 0), (".event rect", 1))
    )
    assert [first[0] - line[0], first[1]] == pytest.approx([0, line[1] / 4], abs=1)
    assert [second[0] - line[0], second[1]] == pytest.approx([line[1] * 0.75, line[1] / 4], abs=1)
    right = browser.value(
        "Math.max(...[...document.querySelectorAll('.event text')].map(t => t.getBoundingClientRect().right))"
    )
    assert right <= line[0] + line[1] + 4


def test_the_page_is_complete_without_a_browser(page):
    html = page.read_text(encoding="utf-8")
    assert "<script>window" not in html
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in html
    assert not re.search(r"(src|href)=[\"'](?!data:image/webp;base64,)", html)


def test_the_least_confident_answers_of_a_real_model_come_first(tmp_path):
    drawn.write_scene_files(tmp_path / "detect", "detect", 6, first_scene=100_000)
    where = [f"input.manifest={tmp_path}/detect/manifest.parquet", f"output.path={tmp_path}/out"]
    job = job_loader.load_job(JOBS_FOLDER / "detect.yaml", changes=where)
    assert driver.run_job(job, driver.RunOptions(runner="local"), say=lambda line: None) == 0
    rows = [row for path in (tmp_path / "out").glob("data/*/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all(row["logprob"] < 0 < row["latency_s"] for row in rows)
    doubtful = [row["id"] for row in sorted(rows, key=lambda row: row["logprob"])[:2]]
    page = tmp_path / "page.html"
    assert main(["report", f"{tmp_path}/out", "--to", str(page), "--worst", "2", "--random", "6"]) == 0
    html = page.read_text(encoding="utf-8")
    found = re.findall(r'<h2 id="id\d+"><bdi>([^<]+)</bdi> <span class="why">([^<]+)</span>', html)
    assert found[:2] == [(name, "least confident") for name in doubtful]
    assert sorted(name for name, _ in found) == sorted(row["id"] for row in rows)
    assert "<h3>latency of a row in the engine</h3>" in html
    assert "<h3>confidence</h3>" in html


def test_an_output_of_a_stranger_does_not_choose_what_the_report_reads(boxes, tmp_path, capsys):
    to = tmp_path / "page.html"
    command = ["report", str(boxes), "--to", str(to), "--random", "0", "--worst", "0", "--id", "plain3"]
    (job_document,) = (boxes / "runs").glob("*/job.json")
    assert json.loads(job_document.read_text())["input"]["roots"] == [str(boxes.parent)]
    assert main(command) == 0
    assert "data:image/webp" not in to.read_text(encoding="utf-8")
    assert "media that are not shown: 1, because no option allows to read them." in (said := capsys.readouterr().out)
    assert f"--stores; the output says it read them with: --roots {boxes.parent}\n" in said
    assert main([*command, "--roots", str(boxes.parent)]) == 0
    assert "data:image/webp" in to.read_text(encoding="utf-8")
    assert "not shown" not in capsys.readouterr().out


def test_a_store_for_a_report_is_checked_like_the_key_of_a_job(boxes, tmp_path, capsys):
    assert main(["report", str(boxes), "--to", str(tmp_path / "p.html"), "--stores", "scans"]) == 2
    assert "--stores: " in (said := capsys.readouterr().err)
    assert "write a store as s3://bucket" in said


def test_a_root_that_does_not_exist_is_named(boxes, tmp_path, capsys):
    assert main(["report", str(boxes), "--to", str(tmp_path / "p.html"), "--roots", str(tmp_path / "pisc")]) == 2
    assert capsys.readouterr().err == f"error: --roots {tmp_path}/pisc: there is no such folder\n"


def test_a_row_can_be_chosen_by_its_id(boxes, tmp_path, capsys):
    to = tmp_path / "one.html"
    assert main(["report", str(boxes), "--to", str(to), "--random", "0", "--worst", "0", "--id", "plain3"]) == 0
    assert "one.html: 1 row," in capsys.readouterr().out
    assert main(["report", str(boxes), "--id", "nobody"]) == 2
    assert "--id nobody: no row of that id is answered" in capsys.readouterr().err


def test_annotations_are_found_anywhere_in_an_answer():
    means = {"bbox_2d": "box", "point_2d": "point", "start": "seconds", "end": "seconds", "image": "image"}
    answer = {
        "pages": [{"bbox_2d": [1, 2, 3, 4], "label": "a", "image": 2}],
        "deep": {"point_2d": [5, 6], "name": "b"},
        "events": [{"what": "c", "start": 1.0, "end": 2.5}],
        "many": {"bbox_2d": [[0, 0, 1, 1], [2, 2, 3, 3]]},
        "broken": {"bbox_2d": [1, 2]},
    }
    assert find_annotations(answer, means) == [
        Annotation("box", (1, 2, 3, 4), "a", 1),
        Annotation("point", (5, 6), "b"),
        Annotation("event", (1, 2.5), "c"),
        Annotation("box", (0, 0, 1, 1), "bbox_2d"),
        Annotation("box", (2, 2, 3, 3), "bbox_2d"),
    ]
    assert find_annotations("text", means) == []


def test_labels_stay_inside_the_picture():
    for box in ((0, 0, 5, 5), (990, 590, 1000, 600), (500, 3, 600, 40)):
        where = place_label(Annotation("box", box, "a rather long label"), (1000, 600), 20.0)
        assert 0 <= where["x"] <= 1000 - where["width"]
        assert 0 <= where["y"] <= 600 - where["height"]


def test_the_label_of_an_event_is_cut_to_fit():
    assert place_event(Annotation("event", (0, 10), "short"), 10)["side"] == "inside"
    long = place_event(Annotation("event", (4, 5), "w" * 200), 10)
    assert (long["side"], len(long["label"])) == ("after", 54)
    assert place_event(Annotation("event", (9.5, 10), "it leaves"), 10)["side"] == "before"


def test_missing_media_leave_a_frame_of_their_size():
    gone = MediaPreview("image", "s3://b/x.png", (200, 100), missing="not_found: no such object")
    drawn = annotate_media(gone, [Annotation("box", (10, 10, 20, 20), "a")], Palette())
    assert (drawn.preview, len(drawn.boxes)) == (gone, 1)
    assert fit_size((200, 100), 50) == (50, 25)


def test_control_characters_are_made_visible():
    assert escape_control_characters("a\u202eb\x00\u200f") == "a[U+202E]b[U+0000][U+200F]"
    assert escape_control_characters("👩‍👧 ok\n") == "👩‍👧 ok\n"


def test_a_folder_that_is_no_output_is_refused(tmp_path):
    with pytest.raises(OutputError, match="there is no output of a run here"):
        write_report(str(tmp_path), tmp_path / "r.html")
