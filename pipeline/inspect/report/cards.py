"""What was gathered -> the values that the page's template draws: tiles, charts, cards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.inspect.report.charts import Bar, Palette, Shown, bars, durations, histogram, leaves, shown
from pipeline.inspect.report.gather import Chosen, Figures, Group, confidence
from pipeline.inspect.report.marks import marks
from pipeline.inspect.report.pictures import Picture
from pipeline.inspect.status import Folder, versions, when
from pipeline.output.arrow_tables import OURS
from pipeline.run.progress import clock

WIDE = 9  # values in an answer that need the room beside the picture
WHY = {"chosen": "chosen", "doubtful": "least confident", "random": "random"}
STEPS = {"worked": "answering", "waited": "waiting", "read": "reading rows"}
STEPS |= {"fetch": "fetching", "decode": "decoding", "prompt": "prompts", "commit": "committing"}


@dataclass(frozen=True, slots=True)
class Card:
    id: str
    why: str
    because: str  # the same in words
    answer: Any
    kept: Mapping[str, Any]
    media: Sequence[Shown]
    violations: Sequence[str]
    facts: Sequence[str]
    said: str  # the model's own words, where they differ
    wide: bool
    tags: str  # what the filter may ask for


Look = Callable[[Mapping[str, Any]], Picture]


def is_wide(row: Mapping[str, Any]) -> bool:
    return leaves(said(row)) > WIDE or any(seen["kind"] == "video" for seen in row["media"] or ())


def said(row: Mapping[str, Any]) -> Any:
    return row.get("answer") if row.get("answer") is not None else row["text"]


def card(chosen: Chosen, means: Mapping[str, str], look: Look, palette: Palette, *, wide: bool) -> Card:
    row = chosen.row
    answer = said(row)
    found = marks(row.get("answer"), means)
    media = [
        shown(look(seen), [mark for mark in found if mark.medium == at], palette, wide=wide)
        for at, seen in enumerate(row["media"] or ())
    ]
    tokens = row["tokens"]
    facts = [f"{tokens['vision']:,} vision tokens", f"{tokens['output']:,} output tokens", row["finish"]]
    facts += [f"confidence {confidence(row['logprob'])} %"] if row["logprob"] is not None else []
    facts += [f"{row['latency_s']:.3g} s"] if row.get("latency_s") is not None else []
    facts += [f"{row['attempts']} attempts"] if row["attempts"] > 1 else []
    tags = ["marks"] * bool(found) + ["doubts"] * bool(row["violations"] or row["flags"])
    return Card(
        id=row["id"],
        why=chosen.why,
        because=WHY[chosen.why],
        answer=answer,
        kept={name: value for name, value in row.items() if name not in OURS},
        media=media,
        violations=row["violations"] or (),
        facts=[*facts, *(row["flags"] or ())],
        said=row["raw"] or (row["text"] if answer is not row["text"] else ""),
        wide=wide,
        tags=" ".join(tags),
    )


def content(folder: Folder, figures: Figures, found: Sequence[Group], cards: Sequence[Card]) -> dict[str, Any]:
    return {
        "name": folder.job.get("name", "answers"),
        "path": folder.store.path,
        "fingerprint": folder.fingerprint,
        "model": folder.job.get("model", {}).get("weights", ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "figures": figures,
        "tiles": tiles(figures, found, folder.runs),
        "charts": charts(figures, found, folder.runs),
        "note": note(figures),
        "segments": segments(cards),
        "cards": cards,
        "groups": found,
        "runs": [line(run) for run in folder.runs],
        "question": json.dumps(folder.question, indent=2, ensure_ascii=False),
    }


def tiles(figures: Figures, found: Sequence[Group], runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    whole = [("answered", figures.rows), ("in errors/", sum(group.count for group in found))]
    whole += [("vision tokens", total(figures.vision)), ("output tokens", total(figures.output))]
    whole += [("cut off", figures.finish["length"]), ("with violations", figures.violations)]
    whole += [("clamped or repaired", figures.flags.total())]
    cost = sum(run.get("cost") or 0.0 for run in runs)
    return [(name, f"{value:,}") for name, value in whole] + ([("cost", f"{cost:,.4g}")] if cost else [])


def total(counts: Counter[int]) -> int:
    return sum(value * count for value, count in counts.items())


def charts(figures: Figures, found: Sequence[Group], runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Bar]]:
    spent: Counter[str] = Counter()
    for run in runs:
        spent.update({STEPS[name]: each for name, each in run.get("workers_seconds", {}).items() if name in STEPS})
    return {
        "vision": histogram(figures.vision),
        "output": histogram(figures.output),
        "confidence": histogram(figures.confidence, " %"),
        "latency": durations(figures.latency),
        "seconds": bars({name: each for name, each in spent.items() if each >= 0.05}, "{:,.1f} s"),
        "errors": bars({group.name: group.count for group in found}),
    }


def note(figures: Figures) -> str:
    if figures.parts_read == figures.parts:
        return ""
    return f"Figures are of {figures.parts_read:,} of {figures.parts:,} parts, evenly spread."


def segments(cards: Iterable[Card]) -> list[tuple[str, str, int]]:
    """What the filter offers: only what there is."""
    counts = Counter(name for each in cards for name in ("all", each.why, *each.tags.split()))
    named = {"all": "all", **WHY, "marks": "with places or times", "doubts": "with doubts"}
    return [(key, said, counts[key]) for key, said in named.items() if counts[key] or key == "all"]


def line(run: Mapping[str, Any]) -> dict[str, Any]:
    done = run["answered"] + run["failed"]
    rate = f"{done / run['seconds']:.1f}" if run["seconds"] else ""
    return {**run, "run": when(run["run"]), "took": clock(run["seconds"]), "rate": rate, "versions": versions(run)}
