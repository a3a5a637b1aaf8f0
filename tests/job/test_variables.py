"""What `${...}` stands for in a job file, and what must not stand in one."""

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

LEAST = """\
name: nightly
input: {manifest: "s3://scans/day=${yesterday}/*.parquet", media: uri}
prompt: {user: "What is it?"}
model: {weights: builtin:tiny}
output: {path: "s3://labels/${week}"}
"""


def job(text: str = LEAST, **more: object) -> Job:
    return parse_job(text, source_name="job.yaml", **{"environment": {}, "date": "2026-11-21", **more})


def wrong(text: str, **more: object) -> str:
    with pytest.raises(JobError) as caught:
        job(text, **more)
    return str(caught.value)


def test_the_day_of_a_run_stands_in_the_resolved_job():
    assert job().input.manifest == ("s3://scans/day=2026-11-20/*.parquet",)
    assert job().output.path == "s3://labels/2026-W47"


def test_a_missed_day_is_caught_up_by_naming_it():
    assert job(date="2026-03-01").input.manifest == ("s3://scans/day=2026-02-28/*.parquet",)
    assert job(date=None, environment={"VLBATCH_DATE": "2025-12-29"}).output.path == "s3://labels/2026-W01"
    assert job(date="2026-11-21", environment={"VLBATCH_DATE": "2025-12-29"}).output.path == "s3://labels/2026-W47"


def test_a_day_can_be_written_as_the_partitions_are():
    text = LEAST.replace("day=${yesterday}", "${date:%Y/%m/%d}")
    assert job(text).input.manifest == ("s3://scans/2026/11/21/*.parquet",)
    assert "${Q:%Y}: only date, yesterday, week" in wrong(LEAST.replace("${week}", "${Q:%Y}"), environment={"Q": "q"})


def test_a_day_may_stand_in_what_a_variable_says_and_nothing_else_may():
    text = LEAST.replace("s3://scans/day=${yesterday}/*.parquet", "${M}")
    assert job(text, environment={"M": "s3://a/${date:%d}/${HOME}"}).input.manifest == ("s3://a/21/${HOME}",)


@pytest.mark.parametrize(("environment", "said"), [({}, "b"), ({"M": ""}, "b"), ({"M": "c"}, "c")])
def test_a_default_stands_for_a_variable_that_is_not_set_or_empty_as_in_a_shell(environment, said):
    text = LEAST.replace("s3://scans/day=${yesterday}/*.parquet", "${M:-b}")
    assert job(text, environment=environment).input.manifest == (said,)


def test_a_day_that_is_none_is_refused_with_an_example():
    assert "--date 21.11.2026: write a day as 2026-11-20" in wrong(LEAST, date="21.11.2026")
    assert "VLBATCH_DATE 2026-02-30: write" in wrong(LEAST, date=None, environment={"VLBATCH_DATE": "2026-02-30"})


def test_today_is_the_day_of_the_clock_that_the_zone_names(monkeypatch):
    days = []
    for zone in ("UTC-14", "UTC+12"):  # POSIX: hours to add to reach UTC; 26 hours apart is never one day
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        days.append(resolve_date(None, {}))
    monkeypatch.delenv("TZ")
    time.tzset()
    assert days[0] > days[1]


def test_a_typo_in_a_day_is_told_the_nearest():
    assert "${yesterdy} is not set" in (message := wrong(LEAST.replace("yesterday", "yesterdy")))
    assert "'yesterday'" in message


@given(st.dates())
def test_a_week_and_its_days_agree_at_every_turn_of_the_year(day):
    year, week, _ = day.isocalendar()
    found: list[object] = []
    assert (
        fill_variables("${week}|${date}", {}, day, found) == f"{year:04}-W{week:02}|{day.isoformat()}"
        or day.year < 1000
    )
    assert not found


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
def test_credentials_are_refused_with_advice_and_never_repeated(text, name):
    message = wrong(LEAST.replace("s3://scans/day=${yesterday}/*.parquet", text))
    assert f"job.yaml:2: input.manifest: holds {name}" in message
    assert "environment of every node" in message
    assert "hunter2secret" not in message
    from_outside = LEAST.replace("s3://scans/day=${yesterday}/*.parquet", "${M}")
    assert f"holds {name}" in (message := wrong(from_outside, environment={"M": text}))
    assert "hunter2secret" not in message


def test_a_secret_key_takes_a_reference_only():
    engine = 'engine: {kind: http, url: "http://llm:8000/v1", api_key: "%s"}\n'
    message = wrong(LEAST + engine % "hunter2secret")
    assert "job.yaml:6: engine.api_key: is a secret; write ${NAME}" in message
    assert "hunter2secret" not in message
    assert "hunter2secret" not in wrong(LEAST, changes=["engine.kind=http", "engine.api_key=hunter2secret"])
    given = {"engine": {"kind": "http", "api_key": "${KEY}"}}
    filled = {"engine": {"kind": "http", "api_key": "sk-hunter2secrethunter2secret"}}
    assert not list(find_credentials(given, filled))


def test_what_only_looks_like_a_credential_passes():
    for text in (
        "s3://key:board/AKIA/m.parquet",
        "https://cdn.acme.com/a@b:c/m.parquet?page=2",
        "/data/sk-1/m.parquet",
    ):
        assert job(LEAST.replace("s3://scans/day=${yesterday}/*.parquet", text)).input.manifest == (text,)


def test_the_variables_of_a_job_are_known_without_their_values():
    assert find_variables({"a": "${X} ${date} $${Y}", "b": ["${X:-1}"]}) == {"X": {("a",), ("b", 0)}}


def test_explain_says_what_every_day_is(capsys):
    assert main(["check", "--explain"]) == 0
    said = capsys.readouterr().out
    assert all(f"${{{name}}}" in said for name in DATE_FORMATS)
    assert "VLBATCH_DATE" in said
