"""The live page shows what a run commits, to those who have its address and to nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from pipeline.__main__ import main
from pipeline.command_line.parser import parse_arguments
from pipeline.inspect.live import live_server
from pipeline.inspect.live.live_output import LiveOutput
from pipeline.inspect.live.live_server import serve_live_page
from pipeline.job.spec import InputSection
from tests.inspect.browser import Browser

CHUNKS_OF_TWO = {"output": {"chunk_rows": 2}}


def get(url: str, **headers: str) -> str:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["Cache-Control"] == "no-store"
        return response.read().decode()


def heed_interrupts() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def get_status(url: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, **headers)
    return caught.value.code


@pytest.fixture
def output(workspace):
    """Four answered rows of six, one that failed, one that is left."""
    workspace.write_manifest(
        [*workspace.draw_images(4), *workspace.write_broken_images(1), *workspace.draw_images(1, 9)]
    )
    workspace.run_job(row_limit=5, **CHUNKS_OF_TWO)
    return str(workspace.folder / "out")


def test_a_view_counts_what_is_committed_and_shows_the_newest(workspace, output):
    live = LiveOutput(output, None)
    view = live.read_view()
    assert dict(view.tiles) == {"rows done": "5 of 5", "answered": "4", "failed": "1"}
    assert view.failures == [("decode/unknown_format", 1)]
    assert [error["id"] for error in view.errors] == ["bad0"]
    assert {card.id for card in view.cards} == {"r0", "r1", "r2", "r3"}
    assert all(card.media[0].preview.stills for card in view.cards)
    workspace.run_job(**CHUNKS_OF_TWO)
    later = live.read_view()
    assert dict(later.tiles)["answered"] == "5"
    assert later.cards[0].id == "r9"
    assert later.done_share == 1.0


def test_a_failed_row_that_is_answered_later_counts_once(workspace, output):
    live = LiveOutput(output, None)
    live.read_view()
    workspace.draw_images(1)
    os.replace(workspace.folder / "pics/0.png", workspace.folder / "pics/bad0.png")
    workspace.draw_images(1)
    assert workspace.run_job(retry_kind="", **CHUNKS_OF_TWO) == 0
    for view in (live.read_view(), LiveOutput(output, None).read_view()):
        assert dict(view.tiles) == {"rows done": "6 of 6", "answered": "6", "failed": "0"}
        assert view.failures == []


def test_media_are_read_only_where_it_is_allowed(output):
    view = LiveOutput(output, InputSection(manifest=("-",))).read_view()
    assert all("--roots" in card.media[0].preview.missing for card in view.cards)


def test_an_output_that_is_not_there_yet_is_no_error(workspace):
    live = LiveOutput(str(workspace.folder / "out"), None)
    assert "there is no output" in live.read_view().status
    workspace.write_manifest(workspace.draw_images(2))
    workspace.run_job()
    assert dict(live.read_view().tiles)["answered"] == "2"


def test_the_page_is_read_only_local_and_behind_a_token(output, monkeypatch):
    monkeypatch.setattr(live_server, "MIN_REFRESH_S", 0.0)
    said: list[str] = []
    with serve_live_page(LiveOutput(output, None), 0, said.append) as address:
        assert said == [f"live page, on this machine: {address}"]
        assert address.startswith("http://127.0.0.1:")
        page = get(address)
        assert "5 of 5" in page
        assert "decode/unknown_format" in page
        assert get_status(address.partition("?")[0]) == 403
        assert get_status(f"{address}x") == 403
        assert get_status(address, Host="attacker.example") == 403
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(address, data=b"x")
    with pytest.raises(urllib.error.URLError):
        get(address)


def test_what_a_model_wrote_is_text_on_the_page(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    workspace.run_job(engine={"default": "<img src=x onerror=alert(1)>"})
    with serve_live_page(LiveOutput(str(workspace.folder / "out"), None), 0, print) as address:
        page = get(address)
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_a_port_that_is_taken_is_named(output):
    with serve_live_page(LiveOutput(output, None), 0, print) as address:
        port = address.split(":")[2].partition("/")[0]
        with pytest.raises(live_server.OutputError, match=rf"--serve {port}: .*; name another port"):
            serve_live_page(LiveOutput(output, None), int(port), print).__enter__()


def test_the_port_may_be_left_out():
    for arguments, port in (
        (["--serve", "job.yaml"], 0),
        (["--serve", "8000", "job.yaml"], 8000),
        (["job.yaml"], None),
    ):
        options = parse_arguments(None, ["run", *arguments])
        assert (options.serve, options.job) == (port, "job.yaml")


@pytest.mark.process
def test_a_browser_sees_a_run_as_it_goes_on(workspace):
    """`run --serve` prints an address; the page in a browser follows without being loaded again."""
    workspace.write_manifest(workspace.draw_images(40))
    job = workspace.write_job_file(engine={"delay_ms": 400, "slots": 1}, output={"chunk_rows": 2})
    command = [sys.executable, "-m", "pipeline", "run", "--local", "--serve", str(job)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)
    browser = Browser()
    try:
        assert run.stdout is not None
        address = run.stdout.readline().split()[-1]
        browser.open_url(address)
        counts = {0}
        deadline = time.monotonic() + 120
        while len(counts) < 3 and time.monotonic() < deadline:
            time.sleep(0.5)
            counts.add(browser.value("document.querySelectorAll('.card').length"))
        assert len(counts) >= 3
        assert "of 40" in browser.value("document.querySelector('.tiles').textContent")
        assert browser.value("document.querySelector('.card img').naturalWidth") > 0
        assert [entry for entry in browser.log if entry[0] == "console"] == []
    finally:
        browser.close()
        run.send_signal(signal.SIGINT)
        run.wait(60)


@pytest.mark.process
def test_an_output_is_followed_until_it_is_interrupted(output):
    command = [sys.executable, "-u", "-m", "pipeline", "report", output, "--serve"]
    report = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    assert report.stdout is not None
    assert "5 of 5" in get(report.stdout.readline().split()[-1])
    report.send_signal(signal.SIGINT)
    assert report.wait(60) == 130


def test_a_wrong_output_is_a_line_on_the_page_and_not_a_crash(tmp_path, capsys):
    assert "there is no output" in LiveOutput(str(tmp_path), None).read_view().status
    assert main(["report", str(tmp_path)]) == 2
