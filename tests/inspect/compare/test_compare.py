"""The recipe of REFERENCE.md from two prompts to a decision, as it is printed; what `compare` says in other cases."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.inspect.compare.paired_tests import compute_mcnemar_p_value

REFERENCE = (Path(__file__).parents[3] / "REFERENCE.md").read_text(encoding="utf-8")
ROWS = 48
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}, "paid": {"type": "boolean"}}}
SCHEMA["required"] = ["total", "paid"]


@pytest.fixture
def two_prompts(workspace, monkeypatch, capsys):
    """An output with answers to the first prompt, and a job. The first prompt misreads every third total."""
    (workspace.folder / "bill.json").write_text(json.dumps(SCHEMA))
    rows = workspace.draw_images(ROWS)
    replies = {}
    for number, row in enumerate(rows):
        row["vendor_hint"] = f"v{number}v"
        first = {"total": number + (number % 3 == 0), "paid": number != 1}
        replies[f"Vendor hint: v{number}v."] = json.dumps(first, indent=4)
        replies[f"of v{number}v."] = json.dumps({"total": number, "paid": number != 2})
    workspace.write_manifest(rows)
    sections = {
        "input": {"keep": []},
        "prompt": {"user": "Vendor hint: {vendor_hint}. Read this invoice, slowly and with great care."},
        "engine": {"replies": replies},
        "answer": {"schema": f"{workspace.folder}/bill.json"},
        "output": {"path": "out/invoices"},
    }
    workspace.write_job_file(**sections)
    monkeypatch.chdir(workspace.folder)
    assert main(["run", "job.yaml", "--local"]) == 0
    capsys.readouterr()
    return workspace


def label_sample(path):
    """What people write: the right totals."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["truth"] = json.dumps({"total": int(row["id"][1:]), "paid": True})
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.process
def test_the_recipe_leads_from_two_prompts_to_a_decision(two_prompts, capsys):
    (recipe,) = re.findall(r"Two prompts, and a decision:\n\n((?:    .*\n)+)", REFERENCE)
    sample, run, compare = (shlex.split(line, comments=True)[3:] for line in recipe.splitlines())
    assert main(sample) == 0
    label_sample("check.csv")
    assert main([*run, "--local"]) == 0
    capsys.readouterr()
    assert main([*compare, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["truth_rows"]) == (ROWS, ROWS)
    assert found["agreement"]["total"]["differing"] == sorted(f"r{n}" for n in range(0, ROWS, 3))
    assert found["agreement"]["paid"]["differing"] == ["r1", "r2"]
    total = found["measures"]["total"]["right"]
    assert (total["first"], total["second"]) == (pytest.approx(2 / 3), 1.0)
    assert total["difference"]["low"] > 0.15
    assert total["p_value"] == pytest.approx(2 / 2 ** (ROWS / 3))
    assert found["measures"]["paid"]["right"]["p_value"] == 1.0
    first, second = found["costs"]
    assert first["tokens_per_right"] == pytest.approx(first["tokens"] / (31 / 48))
    assert second["tokens"] < first["tokens"]
    assert main([*compare, "--price", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'prompt.user: was "Vendor hint: {vendor_hint}.' in lines[2]
    assert re.match(r"cost per right answer +\S+ +\S+", next(line for line in lines if "cost per right" in line))
    assert re.fullmatch(
        r"The second is better by 33\.3 points of right answers \(p < 0\.001\); cost per right answer: [+-]\d+ %",
        lines[-2],
    )


@pytest.mark.process
def test_without_a_truth_it_says_where_answers_agree(two_prompts, capsys):
    assert main(["compare", "out/invoices"]) == 2
    assert "has one question; run the job with another prompt" in capsys.readouterr().err
    assert main(["run", "job.yaml", "--local", "--set", "prompt.user=of {vendor_hint}.", "--on-change", "add"]) == 0
    assert main(["compare", "out/invoices", "0123456789ab"]) == 2
    capsys.readouterr()
    assert main(["compare", "out/invoices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"total +0\.667 +16  r0, r12, r15, r18, r21, \.\.\.", line) for line in lines)
    assert lines[-2].startswith("Which is better? --truth tells")


def test_the_paired_test_is_that_of_mcnemar():
    from scipy.stats import binomtest  # a second, which other tests need not wait for

    rng = np.random.default_rng(4)
    for gained, lost in rng.integers(0, 40, size=(50, 2)).tolist():
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert compute_mcnemar_p_value(gained, lost) == pytest.approx(expected)
    assert compute_mcnemar_p_value(560, 500) == pytest.approx(binomtest(560, 1060).pvalue, rel=0.05)
