"""Strings of a job file -> the same with `${...}` filled in; credentials are refused.

Filled after parsing, so that a variable's content can never change the structure of the file. A day is settled once,
on the driver, and stands in the resolved job: whoever reads `runs/<id>/job.json` sees which partition was asked.
The day is that of the clock where the run starts (TZ is honoured), for that is what a schedule goes by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from typing import Any

from pipeline.errors import JobError
from pipeline.registry import nearest

Path_ = tuple[str | int, ...]
Problem = tuple[Path_, str]
VARIABLE = re.compile(r"\$\{(\w+)(?::(%[^}]*))?(?::-([^}]*))?\}|\$\$\{")
DAY = "VLBATCH_DATE"
DAYS = {"date": "%Y-%m-%d", "yesterday": "%Y-%m-%d", "week": "%G-W%V"}
EXPLAINED = f"""\
In any value:
  ${{NAME}}, ${{NAME:-default}}   from the environment, whose content may name days too; $${{ stays ${{
                             (the default where NAME is not set or empty)
  ${{date}}, ${{yesterday}}       2026-11-21, 2026-11-20: the day of the run, and the one before
  ${{week}}                     2026-W47: its ISO week
  ${{date:%Y/%m/%d}}            any of the three, written otherwise (strftime)
The day is today where the run starts (TZ is honoured), or what --date 2026-11-20 or {DAY} says.
Credentials do not belong in a job file; they come from the environment of every node, or from its service account."""

SECRETS = {  # what a string must not hold, and what to call it
    r"[a-z][\w+.-]*://[^/\s@?#:]*:[^/\s@]+@": "a user and password in a URL",
    r"(?i)[?&](x-amz-(signature|credential|security-token)|x-goog-signature|sig|access_token)=": "a signed URL",
    r"(?i)[?&](api[_-]?key|key|token)=": "a key in a URL",
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b": "an AWS access key",
    r"(?i)\b(AccountKey|SharedAccessSignature|aws_secret_access_key)\s*=": "a storage key",
    r"\bhf_[A-Za-z0-9]{30,}": "a Hugging Face token",
    r"\bsk-[A-Za-z0-9_-]{20,}": "an API key",
    r"\bgh[pousr]_[A-Za-z0-9]{30,}": "a GitHub token",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----": "a private key",
}
ADVICE = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*, HF_TOKEN "
    "in the environment of every node (on Kubernetes: a Secret or a service account), and take it out of the job"
)


def today(said: str | None, environment: Mapping[str, str]) -> date:
    """The day that a job is for: what the command says, what the environment says, or today."""
    text = said or environment.get(DAY)
    if not text:
        return datetime.now().astimezone().date()
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise JobError(f"{'--date' if said else DAY} {text}: write a day as 2026-11-20") from error


def fill(value: Any, environment: Mapping[str, str], day: date, problems: list[Problem]) -> Any:
    """Every string with its variables filled; what cannot be is added to the problems."""
    days = {"date": day, "yesterday": day - timedelta(days=1), "week": day}

    def dated(match: re.Match[str]) -> str:
        """A day, also inside of a variable's content, so that a schedule's settings can name partitions."""
        return days[match[1]].strftime(match[2] or DAYS[match[1]]) if match[1] in days else match[0]

    def text(at: Path_, match: re.Match[str]) -> str:
        name, form, default = match[1], match[2], match[3]
        if name is None:
            return "${"
        if name in days:
            return dated(match)
        if form:
            problems.append((at, f"${{{name}:{form}}}: only {', '.join(DAYS)} can be written by a pattern"))
        elif name not in environment and default is None:
            hint = nearest(name, DAYS)
            problems.append((at, f"${{{name}}} is not set; set it, or write ${{{name}:-default}}{hint}"))
        return VARIABLE.sub(dated, environment.get(name) or default or "")

    def each(value: Any, at: Path_) -> Any:
        if isinstance(value, dict):
            return {key: each(inner, (*at, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [each(inner, (*at, index)) for index, inner in enumerate(value)]
        return VARIABLE.sub(lambda match: text(at, match), value) if isinstance(value, str) else value

    return each(value, ())


def strings(value: Any, at: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """Every string of a job, and where it stands."""
    if isinstance(value, str):
        yield at, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from strings(each, (*at, key))


def variables(value: Any) -> dict[str, set[Path_]]:
    """The environment's variables that a job names, and where."""
    out: dict[str, set[Path_]] = {}
    for at, text in strings(value):
        for match in VARIABLE.finditer(text):
            if match[1] and match[1] not in DAYS:
                out.setdefault(match[1], set()).add(at)
    return out


def credentials(given: Any, filled: Any, secret: Callable[[Path_], bool]) -> Iterator[Problem]:
    """Where a job holds what nobody should read in it. The value is never shown."""
    for at, text in strings(given):
        if secret(at) and not re.fullmatch(r"\$\{\w+(:-)?\}", text):
            yield at, "is a secret; write ${NAME} here and set NAME in the environment"
    for at, text in strings(filled):
        if what := next((what for form, what in SECRETS.items() if not secret(at) and re.search(form, text)), None):
            yield at, f"holds {what}; {ADVICE}"
