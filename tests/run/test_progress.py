"""The progress of a run on a terminal and in a log, and its last line."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pipeline.command_text import shorten_path
from pipeline.output.commit import CommitReceipt, FailedRow
from pipeline.run import progress
from pipeline.run.progress import Progress, format_duration
from pipeline.run.runner import WorkInFlight
from pipeline.run.tally import RunTotals
from pipeline.step_timer import StepTimer
from pipeline.types import TokenCounts

HALF_IDLE = {"worked": 6.0, "waited": 2.0, "decode": 9.0, "fetch": 3.0, "commit": 0.01}


def receipt(answered, failed=0, **more):
    kinds = {"decode/truncated": failed} if failed else {}
    rows = tuple(FailedRow(f"r{number}", "decode", "truncated", "half a file") for number in range(failed))
    return CommitReceipt("k", True, answered, failed, failure_counts=kinds, failed_rows=rows, **more)


@pytest.fixture
def now(monkeypatch):
    """The clock of the progress. It stands still until a test sets it."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_log_gets_lines_at_growing_intervals(now):
    said = []
    with Progress("job", say=said.append) as shown:
        shown.start(1000)
        for second in range(1, 101):
            now[0] = 100.0 + second
            shown.add_receipt(receipt(5, tokens=TokenCounts(vision=100)))
    assert [line.split(" of ")[0] for line in said] == ["25", "75", "175", "375"]
    assert said[0] == "25 of 1,000 rows, 0 failed, 5.0 rows/s, 100 vision tokens/s, 3:15 left"


def test_the_remaining_time_follows_from_the_recent_rate(now):
    with Progress("job", say=lambda line: None) as shown:
        shown.start(3000)
        now[0] = 600.0
        shown.add_receipt(receipt(0))  # the workers took five hundred seconds to start
        for second in range(1, 201):
            now[0] = 600.0 + second
            shown.add_receipt(receipt(10))
        assert shown.compute_rate() == 10.0
        assert shown.estimate_remaining_s() == 100.0


def test_the_end_gets_no_progress_line(now):
    said = []
    with Progress("job", say=said.append) as shown:
        shown.start(10)
        now[0] = 200.0
        shown.add_receipt(receipt(10))
    assert said == []


def test_failure_reasons_count_the_other_kinds(now):
    totals = RunTotals()
    kinds = {f"fetch/{letter}": 6 - number for number, letter in enumerate("abcde")}
    rows = tuple(FailedRow("r1", *kind.split("/"), "Traceback:\ngone") for kind in kinds)
    totals.add_receipt(CommitReceipt("k", True, 0, 20, failure_counts=kinds, failed_rows=rows))
    assert totals.format_failure_reasons().splitlines()[2:] == [
        "       4  fetch/c, such as r1: gone",
        "       5  of 2 other kinds",
    ]


def test_the_summary_says_what_the_engines_waited_for(now):
    shown = Progress("job", say=lambda line: None)
    shown.start(10)
    now[0] = 105.0
    shown.add_receipt(receipt(9, 1, tokens=TokenCounts(1000, 1000, 50), worker_seconds=HALF_IDLE))
    assert shown.format_summary() == (
        "9 answered, 1 failed in 5.0 s: 2.0 rows/s, 200 vision and 10 output tokens/s, "
        "75% of engine speed (waited 19% on decode, 6% on fetch)"
    )


def test_shares_are_computed_over_all_receipts():
    totals = RunTotals()
    totals.add_receipt(receipt(1, worker_seconds={"worked": 1.0, "waited": 3.0, "decode": 1.0}))
    totals.add_receipt(receipt(1, worker_seconds={"worked": 2.0, "waited": 0.0, "fetch": 2.0}))
    assert totals.busy_share == 0.5
    assert totals.wait_shares == {"fetch": pytest.approx(1 / 3), "decode": pytest.approx(1 / 6)}
    assert RunTotals().busy_share is None


def open_console(width=100):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def test_a_terminal_shows_a_live_display_that_disappears_at_the_end(now):
    console = open_console()
    with Progress("captions", console=console) as shown:
        shown.say("captions: 40 rows")
        shown.start(40)
        now[0] = 110.0
        shown.add_receipt(receipt(9, 1, tokens=TokenCounts(vision=2000), worker_seconds=HALF_IDLE))
        shown.say("[not markup]")
        shown.live.refresh()
    text = console.file.getvalue()
    assert "[not markup]" in text
    assert "10 of 40 rows" in text
    assert "10.0 s  30.0 s left  1.0 rows/s  200 vision tokens/s  0 output tokens/s" in text
    assert "75% of engine speed (waited 19% on decode, 6% on fetch)" in text
    assert "1 failed: 1 decode/truncated" in text
    assert (
        text.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in text
    )  # the display is erased, or the cursor is visible again


def test_rows_in_flight_are_shown_on_a_terminal_and_in_a_log(now):
    console, said = open_console(), []
    with Progress("captions", console=console) as shown, Progress("captions", say=said.append) as log:
        for progress_display in (shown, log):
            progress_display.start(400)
            progress_display.show_work(WorkInFlight(64, 128))
        now[0] = 110.0
        shown.add_receipt(receipt(9))
        log.add_receipt(receipt(9))
        shown.live.refresh()
    assert "now 64 rows preparing, 128 answering" in console.file.getvalue()
    assert "now 64 rows preparing, 128 answering" in said[0]


def test_replicas_that_load_their_model_are_shown_before_any_row_is_answered(now):
    console, said = open_console(), []
    with Progress("captions", console=console) as shown, Progress("captions", say=said.append) as log:
        for progress_display in (shown, log):
            progress_display.start(400)
            for second in range(1, 61):
                now[0] = 100.0 + second
                progress_display.show_work(WorkInFlight(rows_preparing=64, replicas_starting=2, replicas_ready=1))
            now[0] = 100.0
        shown.live.refresh()
    assert "1 of 3 replicas ready" in console.file.getvalue()
    assert said == ["0 of 400 rows, now 64 rows preparing, 0 answering, 1 of 3 replicas ready"] * 3  # after 5, 15, 35 s


def test_the_live_display_is_off_when_ray_writes_to_the_terminal(now):
    console = open_console()
    with Progress("captions", console=console, live_disabled=True) as shown:
        shown.start(40)
        assert shown.live is None
    assert console.file.getvalue() == ""


def test_a_narrow_terminal_keeps_every_line_of_the_display_on_one_line(now):
    console = open_console(width=40)
    shown = Progress("a-name-that-is-long", console=console)
    shown.total_rows = 1_000_000
    shown.rate_samples.append((now[0], 0))
    now[0] = 107.0
    shown.add_receipt(receipt(9, 1, worker_seconds=HALF_IDLE))
    lines = console.render_lines(shown.render_display(), pad=False)
    assert len(lines) == 4
    assert all(sum(segment.cell_length for segment in line) <= 40 for line in lines)


def test_durations_are_easy_to_read():
    assert [format_duration(s) for s in (0.04, 59.9, 60, 3599, 3600)] == ["0.0 s", "59.9 s", "1:00", "59:59", "1:00:00"]


def test_a_step_timer_gives_each_second_once():
    timer = StepTimer()
    with timer.measure("decode"):
        pass
    with pytest.raises(KeyError), timer.measure("fetch"):
        raise KeyError
    assert timer.take_seconds().keys() == {"decode", "fetch"}
    assert timer.take_seconds() == {}


def test_a_run_ends_with_its_figures_and_where_the_answers_are(workspace):
    workspace.write_manifest([*workspace.draw_images(6), *workspace.write_broken_images(1)])
    assert workspace.run_job(engine={"delay_ms": 20}) == 3
    last, reason, *where = [line for line in workspace.messages[1:] if not line.endswith(" left")]
    pattern = r"6 answered, 1 failed in \d+\.\d s: .* output tokens/s, \d+% of engine speed \(waited \d+% on .*\)"
    assert re.fullmatch(pattern, last)
    assert "decode/unknown_format" in reason
    assert where[0].startswith(f"answers: {shorten_path(str(workspace.folder))}/out/data/fp=")


def test_names_of_others_do_not_command_the_terminal(capsys):
    Progress("t").say("1  fetch/missing, such as a\x1b[2J\r\x9b.png\nnext")
    assert capsys.readouterr().err == "1  fetch/missing, such as a\\x1b[2J\\r\\x9b.png\nnext\n"
