"""The dashboard and the alert rules are generated from the table of metrics, and the alerts fire when they should."""

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
      exp_annotations: {summary: "stuck has rows left but finished none in the last 30 minutes."}
  - {eval_time: 20m, alertname: VlbatchStalled, exp_alerts: []}
  - eval_time: 30m
    alertname: VlbatchRowsFail
    exp_alerts:
    - exp_labels: {job_name: going, severity: warning}
      exp_annotations:
        summary: "More than 5 % of the rows of going fail. See errors/ and the panel of errors by kind."
  - eval_time: 55m
    alertname: VlbatchInternalErrors
    exp_alerts:
    - exp_labels: {job_name: going, severity: warning}
      exp_annotations: {summary: "Rows of going failed with unexpected errors. Its dead letters hold the tracebacks."}
  - {eval_time: 49m, alertname: VlbatchInternalErrors, exp_alerts: []}
  - {eval_time: 90m, alertname: VlbatchInternalErrors, exp_alerts: []}
"""


@pytest.fixture(scope="module")
def generated_files():
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_files()


def test_the_files_are_up_to_date_with_the_table(generated_files):
    for name, text in generated_files.items():
        assert (FOLDER / name).read_text() == text, "run infra/observability/generate.py"


def test_the_dashboard_shows_every_metric_and_only_metrics_of_the_table(generated_files):
    shown_metrics = set(
        re.findall(r"ray_vlbatch_\w+", json.dumps(json.loads(generated_files["dashboard.json"])["panels"]))
    )
    assert shown_metrics == {to_prometheus_name(name) for name in METRICS}
    assert set(re.findall(r"ray_vlbatch_\w+", generated_files["rules.yaml"])) <= shown_metrics


def test_panels_do_not_overlap(generated_files):
    taken_cells = set()
    for panel in json.loads(generated_files["dashboard.json"])["panels"]:
        grid = panel["gridPos"]
        right, bottom = grid["x"] + grid["w"], grid["y"] + grid["h"]
        cells = {(x, y) for x in range(grid["x"], right) for y in range(grid["y"], bottom)}
        assert right <= 24
        assert not cells & taken_cells
        taken_cells |= cells


def test_alerts_fire_only_when_they_should(generated_files, tmp_path):
    if not shutil.which("promtool"):
        pytest.skip("install promtool (Debian: prometheus) to try the alert rules")
    (tmp_path / "rules.yaml").write_text(generated_files["rules.yaml"])
    (tmp_path / "cases.yaml").write_text(CASES)
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "cases.yaml"]):
        process = subprocess.run(["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout + process.stderr


def test_the_prometheus_operator_gets_the_same_rules(generated_files):
    assert yaml.safe_load(generated_files["prometheus-rule.yaml"])["spec"] == yaml.safe_load(
        generated_files["rules.yaml"]
    )
