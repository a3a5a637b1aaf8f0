"""Dashboard and alerts are made from the table of metrics, and fire when they should."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.cluster.metrics import METRICS, to_prometheus_name

FOLDER = Path(__file__).parents[2] / "infra/observability"
CASES = """
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - {series: 'ray_vlbatch_rows_left{job_name="stuck"}', values: '500x120'}
  - {series: 'ray_vlbatch_rows_total{job_name="stuck",state="answered"}', values: '0+10x30 300x90'}
  - {series: 'ray_vlbatch_rows_left{job_name="going"}', values: '500-1x120'}
  - {series: 'ray_vlbatch_rows_total{job_name="going",state="answered"}', values: '0+10x120'}
  - {series: 'ray_vlbatch_rows_total{job_name="going",state="failed"}', values: '0+2x120'}
  - {series: 'ray_vlbatch_errors_total{job_name="going",stage="internal",kind="internal"}', values: '_x50 1x70'}
  - {series: 'ray_vlbatch_errors_total{job_name="going",stage="decode",kind="empty"}', values: '0+1x120'}
  alert_rule_test:
  - eval_time: 95m
    alertname: VlbatchStalled
    exp_alerts:
    - exp_labels: {job_name: stuck, severity: warning}
      exp_annotations: {summary: "stuck has rows left and finished none for half an hour."}
  - {eval_time: 20m, alertname: VlbatchStalled, exp_alerts: []}
  - eval_time: 30m
    alertname: VlbatchRowsFail
    exp_alerts:
    - exp_labels: {job_name: going, severity: warning}
      exp_annotations:
        summary: "More than one row in twenty of going fails; errors/ and the panel by kind say why."
  - eval_time: 55m
    alertname: VlbatchInternalErrors
    exp_alerts:
    - exp_labels: {job_name: going, severity: warning}
      exp_annotations: {summary: "going met something nobody expected; its dead letters hold the tracebacks."}
  - {eval_time: 49m, alertname: VlbatchInternalErrors, exp_alerts: []}
  - {eval_time: 90m, alertname: VlbatchInternalErrors, exp_alerts: []}
"""


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.files()


def test_the_files_are_those_that_the_table_makes(made):
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, "run infra/observability/generate.py"


def test_every_metric_is_on_the_dashboard_and_nothing_else_is(made):
    used = set(re.findall(r"ray_vlbatch_\w+", json.dumps(json.loads(made["dashboard.json"])["panels"])))
    assert used == {to_prometheus_name(name) for name in METRICS}
    assert set(re.findall(r"ray_vlbatch_\w+", made["rules.yaml"])) <= used


def test_panels_do_not_lie_on_each_other(made):
    taken = set()
    for panel in json.loads(made["dashboard.json"])["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_rules_fire_when_they_should_and_only_then(made, tmp_path):
    if not shutil.which("promtool"):
        pytest.skip("install promtool (Debian: prometheus) to try the alert rules")
    (tmp_path / "rules.yaml").write_text(made["rules.yaml"])
    (tmp_path / "cases.yaml").write_text(CASES)
    for words in (["check", "rules", "rules.yaml"], ["test", "rules", "cases.yaml"]):
        done = subprocess.run(["promtool", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_operators_rules_are_the_same_rules(made):
    assert yaml.safe_load(made["prometheus-rule.yaml"])["spec"] == yaml.safe_load(made["rules.yaml"])
