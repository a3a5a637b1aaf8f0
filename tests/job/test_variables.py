"""Variables in job files, and credentials, which job files must not hold."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.__main__ import main
from pipeline.errors import JobError
from pipeline.job.job_loader import parse_job
from pipeline.job.spec import Job
from pipeline.job.variables import DATE_FORMATS, fill_variables, find_credentials, find_variables, resolve_date

MINIMAL = """\
name: nightly
input: {manifest: "s3://scans/day=${yesterday}/*.parquet", media: uri}
prompt: {user: "What is it?"}
model: {weights: builtin:tiny}
output: {path: "s3://labels/${week}"}
"""


def parse(text: str = MINIMAL, **arguments: object) -> Job:
    return parse_job(text, source_name="job.yaml", **{"environment": {}, "date": "2026-11-21", **arguments})


def read_error(text: str, **arguments: object) -> str:
    with pytest.raises(JobError) as caught:
        parse(text, **arguments)
    return str(caught.value)


def test_the_resolved_job_holds_the_day_of_the_run():
    assert parse().input.manifest == ("s3://scans/day=2026-11-20/*.parquet",)
    assert parse().output.path == "s3://labels/2026-W47"


def test_a_missed_day_can_be_named():
    assert parse(date="2026-03-01").input.manifest == ("s3://scans/day=2026-02-28/*.parquet",)
    assert parse(date=None, environment={"VLBATCH_DATE": "2025-12-29"}).output.path == "s3://labels/2026-W01"
    assert parse(date="2026-11-21", environment={"VLBATCH_DATE": "2025-12-29"}).output.path == "s3://labels/2026-W47"


def test_a_day_can_be_written_by_a_pattern():
    text = MINIMAL.replace("day=${yesterday}", "${date:%Y/%m/%d}")
    assert parse(text).input.manifest == ("s3://scans/2026/11/21/*.parquet",)
    assert "${Q:%Y}: only date, yesterday, week" in read_error(
        MINIMAL.replace("${week}", "${Q:%Y}"), environment={"Q": "q"}
    )


@pytest.mark.parametrize("pattern", ["%H", "%Y-%m-%dT%I", "%-M", "%%%S", "%T", "%c", "%s", "%Z"])
def test_a_time_of_day_is_refused_because_a_run_has_only_a_day(pattern):
    variable = f"${{date:{pattern}}}"
    message = f"output.path: {variable}: "
    assert message in (found := read_error(MINIMAL.replace("${week}", variable)))
    assert "is a time, and these variables are days" in found
    assert message in read_error(MINIMAL.replace("${week}", "${P}"), environment={"P": variable})


def test_a_percent_sign_before_a_letter_is_no_time():
    assert parse(MINIMAL.replace("${week}", "${date:%d%%H}")).output.path == "s3://labels/21%H"


def test_the_content_of_a_variable_may_hold_days_but_no_variables():
    text = MINIMAL.replace("s3://scans/day=${yesterday}/*.parquet", "${M}")
    assert parse(text, environment={"M": "s3://a/${date:%d}/${HOME}"}).input.manifest == ("s3://a/21/${HOME}",)


@pytest.mark.parametrize(("environment", "printed"), [({}, "b"), ({"M": ""}, "b"), ({"M": "c"}, "c")])
def test_a_default_replaces_a_variable_that_is_unset_or_empty(environment, printed):
    text = MINIMAL.replace("s3://scans/day=${yesterday}/*.parquet", "${M:-b}")
    assert parse(text, environment=environment).input.manifest == (printed,)


def test_an_invalid_day_is_refused_with_an_example():
    assert "--date 21.11.2026: write a day as 2026-11-20" in read_error(MINIMAL, date="21.11.2026")
    assert "VLBATCH_DATE 2026-02-30: write" in read_error(
        MINIMAL, date=None, environment={"VLBATCH_DATE": "2026-02-30"}
    )


def test_today_follows_the_time_zone(monkeypatch):
    days = []
    for zone in ("UTC-14", "UTC+12"):  # 26 hours apart, so never the same day
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        days.append(resolve_date(None, {}))
    monkeypatch.delenv("TZ")
    time.tzset()
    assert days[0] > days[1]


def test_a_misspelled_day_is_reported_with_the_closest_name():
    assert "${yesterdy} is not set" in (message := read_error(MINIMAL.replace("yesterday", "yesterdy")))
    assert "'yesterday'" in message


@given(st.dates())
def test_weeks_agree_with_days_around_new_year(day):
    year, week, _ = day.isocalendar()
    problems: list[object] = []
    assert (
        fill_variables("${week}|${date}", {}, day, problems) == f"{year:04}-W{week:02}|{day.isoformat()}"
        or day.year < 1000
    )
    assert not problems


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://reader:hunter2secret@cdn.acme.com/m.parquet", "a user and password in a URL"),
        ("https://b.s3.amazonaws.com/m.parquet?X-Amz-Signature=hunter2secret", "a signed URL"),
        ("https://acme.blob.core.windows.net/m.parquet?sv=1&sig=hunter2secret", "a signed URL"),
        ("https://llm.acme.com/v1?alt=json&key=hunter2secret", "a key in a URL"),
        ("s3://AKIAIOSFODNN7EXAMPLE/hunter2secret", "an AWS access key"),
        ("hf_abcdefghijhunter2secretabcdefghij", "a Hugging Face token"),
    ],
)
def test_credentials_are_refused_with_advice_and_not_shown(text, name):
    message = read_error(MINIMAL.replace("s3://scans/day=${yesterday}/*.parquet", text))
    assert f"job.yaml:2: input.manifest: holds {name}" in message
    assert "environment of every node" in message
    assert "hunter2secret" not in message
    from_outside = MINIMAL.replace("s3://scans/day=${yesterday}/*.parquet", "${M}")
    assert f"holds {name}" in (message := read_error(from_outside, environment={"M": text}))
    assert "hunter2secret" not in message


def test_a_secret_key_accepts_only_a_variable():
    engine = 'engine: {kind: http, url: "http://llm:8000/v1", api_key: "%s"}\n'
    message = read_error(MINIMAL + engine % "hunter2secret")
    assert "job.yaml:6: engine.api_key: is a secret; write ${NAME}" in message
    assert "hunter2secret" not in message
    assert "hunter2secret" not in read_error(MINIMAL, changes=["engine.kind=http", "engine.api_key=hunter2secret"])
    given = {"engine": {"kind": "http", "api_key": "${KEY}"}}
    filled = {"engine": {"kind": "http", "api_key": "sk-hunter2secrethunter2secret"}}
    assert not list(find_credentials(given, filled))


def test_text_that_resembles_credentials_is_accepted():
    for text in (
        "s3://key:board/AKIA/m.parquet",
        "https://cdn.acme.com/a@b:c/m.parquet?page=2",
        "/data/sk-1/m.parquet",
    ):
        assert parse(MINIMAL.replace("s3://scans/day=${yesterday}/*.parquet", text)).input.manifest == (text,)


def test_variables_are_listed_without_their_values():
    assert find_variables({"a": "${X} ${date} $${Y}", "b": ["${X:-1}"]}) == {"X": {("a",), ("b", 0)}}


def test_explain_describes_every_day_variable(capsys):
    assert main(["check", "--explain"]) == 0
    printed = capsys.readouterr().out
    assert all(f"${{{name}}}" in printed for name in DATE_FORMATS)
    assert "VLBATCH_DATE" in printed
