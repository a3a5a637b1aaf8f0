"""Fills in `${...}` in the strings of a job, and refuses credentials.

Variables are filled in after the file is parsed, so that their content cannot change its structure. The day is settled
once, on the driver, by the clock of the machine where the run starts (TZ is honoured), because schedules go by that
clock. It stands in the resolved job, so that `runs/<id>/job.json` shows which partition was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from typing import Any

from pipeline.errors import JobError
from pipeline.job.keys import KeyPath, is_secret_key
from pipeline.registry import format_suggestion

Problem = tuple[KeyPath, str]
VARIABLE_PATTERN = re.compile(r"\$\{(\w+)(?::(%[^}]*))?(?::-([^}]*))?\}|\$\$\{")
DATE_VARIABLE = "VLBATCH_DATE"
DATE_FORMATS = {"date": "%Y-%m-%d", "yesterday": "%Y-%m-%d", "week": "%G-W%V"}
TIME_DIRECTIVE = re.compile(r"(?<!%)(?:%%)*(%[-_0^#EO]*[HIklMSfpPrRTXczZs+])")  # of strftime
VARIABLES_HELP = f"""\
In any value:
  ${{NAME}}, ${{NAME:-default}}   from the environment, whose content may name days too; $${{ stays ${{
                             (the default where NAME is not set or empty)
  ${{date}}, ${{yesterday}}       2026-11-21, 2026-11-20: the day of the run, and the one before
  ${{week}}                     2026-W47: its ISO week
  ${{date:%Y/%m/%d}}            any of the three, written otherwise (strftime, without times)
The day is today where the run starts (TZ is honoured), or what --date 2026-11-20 or {DATE_VARIABLE} says.
Credentials do not belong in a job file; they come from the environment of every node, or from its service account."""

CREDENTIAL_PATTERNS = {
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
CREDENTIALS_ADVICE = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_*, HF_TOKEN "
    "in the environment of every node (on Kubernetes: a Secret or a service account), and take it out of the job"
)


def resolve_date(date_text: str | None, environment: Mapping[str, str]) -> date:
    """The day of `--date`, of the environment, or today."""
    text = date_text or environment.get(DATE_VARIABLE)
    if not text:
        return datetime.now().astimezone().date()
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise JobError(f"{'--date' if date_text else DATE_VARIABLE} {text}: write a day as 2026-11-20") from error


def fill_variables(value: Any, environment: Mapping[str, str], day: date, problems: list[Problem]) -> Any:
    """A copy with all variables filled in. Those that cannot be filled in are appended to `problems`."""
    days = {"date": day, "yesterday": day - timedelta(days=1), "week": day}

    def format_day(key_path: KeyPath, match: re.Match[str]) -> str:
        if match[1] not in days:
            return match[0]
        date_format = match[2] or DATE_FORMATS[match[1]]
        if time_directive := TIME_DIRECTIVE.search(date_format):
            problems.append((key_path, f"{match[0]}: {time_directive[1]} is a time, and these variables are days"))
        return days[match[1]].strftime(date_format)

    def replace_variable(key_path: KeyPath, match: re.Match[str]) -> str:
        name, date_format, default = match[1], match[2], match[3]
        if name is None:
            return "${"
        if name in days:
            return format_day(key_path, match)
        if date_format:
            problem = f"${{{name}:{date_format}}}: only {', '.join(DATE_FORMATS)} can be written by a pattern"
            problems.append((key_path, problem))
        elif name not in environment and default is None:
            hint = format_suggestion(name, DATE_FORMATS)
            problems.append((key_path, f"${{{name}}} is not set; set it, or write ${{{name}:-default}}{hint}"))
        content = environment.get(name) or default or ""
        # A schedule's settings may name partitions by day.
        return VARIABLE_PATTERN.sub(lambda day_match: format_day(key_path, day_match), content)

    def fill(key_path: KeyPath, text: str) -> str:
        return VARIABLE_PATTERN.sub(lambda match: replace_variable(key_path, match), text)

    return map_strings(value, fill)


def map_strings(value: Any, function: Callable[[KeyPath, str], str], key_path: KeyPath = ()) -> Any:
    """A copy of the value with every string replaced."""
    if isinstance(value, dict):
        return {key: map_strings(inner, function, (*key_path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [map_strings(inner, function, (*key_path, index)) for index, inner in enumerate(value)]
    return function(key_path, value) if isinstance(value, str) else value


def find_strings(value: Any, key_path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every string of a job with its key."""
    if isinstance(value, str):
        yield key_path, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from find_strings(inner, (*key_path, key))


def find_variables(value: Any) -> dict[str, set[KeyPath]]:
    """The environment variables that a job names, each with the keys that use it."""
    keys_by_variable: dict[str, set[KeyPath]] = {}
    for key_path, text in find_strings(value):
        for match in VARIABLE_PATTERN.finditer(text):
            if match[1] and match[1] not in DATE_FORMATS:
                keys_by_variable.setdefault(match[1], set()).add(key_path)
    return keys_by_variable


def find_credentials(given: Any, filled: Any) -> Iterator[Problem]:
    """Credentials in the values as they are given and as they are filled in. The messages never show them."""
    for key_path, text in find_strings(given):
        if is_secret_key(key_path) and not re.fullmatch(r"\$\{\w+(:-)?\}", text):
            yield key_path, "is a secret; write ${NAME} here and set NAME in the environment"
    for key_path, text in find_strings(filled):
        if is_secret_key(key_path):
            continue
        name = next((name for pattern, name in CREDENTIAL_PATTERNS.items() if re.search(pattern, text)), None)
        if name:
            yield key_path, f"holds {name}; {CREDENTIALS_ADVICE}"
