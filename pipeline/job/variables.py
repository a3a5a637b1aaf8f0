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
from pipeline.registry import format_suggestion

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]
VARIABLE_PATTERN = re.compile(r"\$\{(\w+)(?::(%[^}]*))?(?::-([^}]*))?\}|\$\$\{")
DATE_VARIABLE = "VLBATCH_DATE"
DATE_FORMATS = {"date": "%Y-%m-%d", "yesterday": "%Y-%m-%d", "week": "%G-W%V"}
VARIABLES_HELP = f"""\
In any value:
  ${{NAME}}, ${{NAME:-default}}   from the environment, whose content may name days too; $${{ stays ${{
                             (the default where NAME is not set or empty)
  ${{date}}, ${{yesterday}}       2026-11-21, 2026-11-20: the day of the run, and the one before
  ${{week}}                     2026-W47: its ISO week
  ${{date:%Y/%m/%d}}            any of the three, written otherwise (strftime)
The day is today where the run starts (TZ is honoured), or what --date 2026-11-20 or {DATE_VARIABLE} says.
Credentials do not belong in a job file; they come from the environment of every node, or from its service account."""

SECRET_PATTERNS = {  # what a string must not hold, and what to call it
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
SECRETS_ADVICE = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*, HF_TOKEN "
    "in the environment of every node (on Kubernetes: a Secret or a service account), and take it out of the job"
)


def resolve_date(date_text: str | None, environment: Mapping[str, str]) -> date:
    """The day that a job is for: what the command says, what the environment says, or today."""
    text = date_text or environment.get(DATE_VARIABLE)
    if not text:
        return datetime.now().astimezone().date()
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise JobError(f"{'--date' if date_text else DATE_VARIABLE} {text}: write a day as 2026-11-20") from error


def fill_variables(value: Any, environment: Mapping[str, str], day: date, problems: list[Problem]) -> Any:
    """Every string with its variables filled; what cannot be is added to the problems."""
    days = {"date": day, "yesterday": day - timedelta(days=1), "week": day}

    def dated(match: re.Match[str]) -> str:
        """A day, also inside of a variable's content, so that a schedule's settings can name partitions."""
        return days[match[1]].strftime(match[2] or DATE_FORMATS[match[1]]) if match[1] in days else match[0]

    def text(at: KeyPath, match: re.Match[str]) -> str:
        name, form, default = match[1], match[2], match[3]
        if name is None:
            return "${"
        if name in days:
            return dated(match)
        if form:
            problems.append((at, f"${{{name}:{form}}}: only {', '.join(DATE_FORMATS)} can be written by a pattern"))
        elif name not in environment and default is None:
            hint = format_suggestion(name, DATE_FORMATS)
            problems.append((at, f"${{{name}}} is not set; set it, or write ${{{name}:-default}}{hint}"))
        return VARIABLE_PATTERN.sub(dated, environment.get(name) or default or "")

    def each(value: Any, at: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: each(inner, (*at, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [each(inner, (*at, index)) for index, inner in enumerate(value)]
        return VARIABLE_PATTERN.sub(lambda match: text(at, match), value) if isinstance(value, str) else value

    return each(value, ())


def find_strings(value: Any, key_path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every string of a job, and where it stands."""
    if isinstance(value, str):
        yield key_path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from find_strings(each, (*key_path, key))


def find_variables(value: Any) -> dict[str, set[KeyPath]]:
    """The environment's variables that a job names, and where."""
    out: dict[str, set[KeyPath]] = {}
    for at, text in find_strings(value):
        for match in VARIABLE_PATTERN.finditer(text):
            if match[1] and match[1] not in DATE_FORMATS:
                out.setdefault(match[1], set()).add(at)
    return out


def find_credentials(
    raw_values: Any, filled_values: Any, is_secret_key: Callable[[KeyPath], bool]
) -> Iterator[Problem]:
    """Where a job holds what nobody should read in it. The value is never shown."""
    for at, text in find_strings(raw_values):
        if is_secret_key(at) and not re.fullmatch(r"\$\{\w+(:-)?\}", text):
            yield at, "is a secret; write ${NAME} here and set NAME in the environment"
    for at, text in find_strings(filled_values):
        if what := next(
            (what for form, what in SECRET_PATTERNS.items() if not is_secret_key(at) and re.search(form, text)), None
        ):
            yield at, f"holds {what}; {SECRETS_ADVICE}"
