"""A sample is drawn and labelled, and tells what all rows are like."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.inspect.score.population import PRESENT, Population

FIGURE = ("kind", "share of cat")


def simulate(rng, share, mistakes, labelled=120, unlabelled=3000):
    """Rows that are a cat or not, of which the model gets some wrong."""
    population = Population()
    true = rng.random(labelled + unlabelled) < share
    answered = true ^ (rng.random(len(true)) < mistakes)
    for number in range(labelled):
        figures = [{("kind", PRESENT): 1.0} | ({FIGURE: 1.0} if is_cat[number] else {}) for is_cat in (true, answered)]
        population.add_pair(*figures)
    for is_cat in answered[labelled:]:
        population.add_rest({("kind", PRESENT): 1.0} | ({FIGURE: 1.0} if is_cat else {}))
    return population.estimate()["kind"][FIGURE[1]]


@pytest.mark.process
@pytest.mark.parametrize(("share", "mistakes", "narrower"), [(0.4, 0.1, 0.75), (0.1, 0.03, 0.85), (0.3, 0.5, 1.06)])
def test_estimates_cover_at_their_nominal_rate_and_are_narrower_than_the_sample(share, mistakes, narrower):
    rng, simulations = np.random.default_rng(2), 200
    drawn = [simulate(rng, share, mistakes) for _ in range(simulations)]
    covered = np.mean([each.estimate.low <= share <= each.estimate.high for each in drawn])
    assert 0.92 <= covered <= 0.995
    widths = [[each.high - each.low for each in (found.estimate, found.sample)] for found in drawn]
    assert np.mean(widths, axis=0)[0] < narrower * np.mean(widths, axis=0)[1]


@pytest.mark.process
def test_a_labelled_sample_tells_what_all_rows_are_like(workspace, capsys, monkeypatch):
    schema = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "size": {"type": "number"}}}
    (workspace.folder / "kind.json").write_text(json.dumps({**schema, "required": ["kind", "size"]}))
    rows = workspace.draw_images(60)
    for number, row in enumerate(rows):
        row["hint"] = f"is {'cat' if number % 3 else 'dog'}"
    workspace.write_manifest(rows)
    replies = {f"is {kind}": json.dumps({"kind": kind, "size": 2}) for kind in ("cat", "dog")}
    workspace.run_job(
        prompt={"user": "{hint}"}, engine={"replies": replies}, answer={"schema": f"{workspace.folder}/kind.json"}
    )
    monkeypatch.chdir(workspace.folder)
    assert main(["sample", "out", "--rows", "30"]) == 0
    assert main(["sample", "out", "--rows", "30"]) == 2
    assert "sample.csv exists, and may hold labels" in capsys.readouterr().err
    with open("sample.csv", newline="") as file:
        drawn = list(csv.DictReader(file))
    assert len({row["id"] for row in drawn}) == 30
    for row in drawn:  # one cat of the sample was a dog, and five rows were never labelled
        row["truth"] = row["answer"] if row["id"] != "r10" else json.dumps({"kind": "dog", "size": 2})
    assert "r10" in {row["id"] for row in drawn}
    for row in drawn[-5:]:
        row["truth"] = ""
    with open("truth.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "media", "answer", "truth"])
        writer.writeheader()
        writer.writerows(drawn)
    assert main(["score", "out", "--truth", "truth.csv", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    cats = score["estimates"]["kind"]["share of cat"]
    assert (score["rows"], score["unlabelled"]) == (25, 35)
    assert cats["answered"] == pytest.approx(40 / 60)
    assert cats["estimate"]["value"] < cats["answered"]
    assert cats["estimate"]["high"] - cats["estimate"]["low"] < cats["sample"]["high"] - cats["sample"]["low"]
    assert score["estimates"]["size"]["mean"]["estimate"]["value"] == 2
    assert main(["score", "out", "--truth", "truth.csv"]) == 0
    assert "kind: share of cat" in capsys.readouterr().out
    assert main(["sample", "out", "--by", "confidence", "--to", "other.csv"]) == 2
    assert "some answers have none" in capsys.readouterr().err
