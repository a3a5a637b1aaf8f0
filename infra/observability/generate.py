"""Generates Grafana's dashboard and Prometheus' alert rules from the table of metrics. Run it when the table changes.

    python infra/observability/generate.py

Queries use the names of the table, so a metric that does not exist stops this script.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.cluster.metrics import METRICS, to_prometheus_name

HERE = Path(__file__).parent
PANELS = [  # title, unit, width in 24ths, and PromQL by legend, in which {name} is a metric of the table
    ("Rows left", "short", 4, {"": "sum({rows_left}{JOB})"}),
    ("Rows done", "short", 4, {"": "sum(increase({rows}{JOB}[$__range]))"}),
    (
        "Failed",
        "percentunit",
        4,
        {"": "sum(increase({rows}{FAILED}[$__range])) / sum(increase({rows}{JOB}[$__range]))"},
    ),
    ("GPU hours", "short", 4, {"": "sum(increase({gpu_seconds}{JOB}[$__range])) / 3600"}),
    ("Cost, estimated", "currencyUSD", 4, {"": "sum(increase({gpu_seconds}{JOB}[$__range])) / 3600 * $gpu_hour_price"}),
    (
        "Engines waiting",
        "percentunit",
        4,
        {"": "sum(rate({seconds}{WAITED}[$__range])) / sum(rate({seconds}{ENGINES}[$__range]))"},
    ),
    ("Rows per second", "short", 12, {"{{state}}": "sum by (state) (rate({rows}{JOB}[$__rate_interval]))"}),
    ("Tokens per second", "short", 12, {"{{kind}}": "sum by (kind) (rate({tokens}{JOB}[$__rate_interval]))"}),
    ("Workers' time by step", "short", 12, {"{{step}}": "sum by (step) (rate({seconds}{JOB}[$__rate_interval]))"}),
    ("Media read", "Bps", 12, {"": "sum(rate({bytes_read}{JOB}[$__rate_interval]))"}),
    (
        "Slots",
        "short",
        8,
        {"busy": "sum({slots_busy}{JOB})", "all": "sum({slots}{JOB})", "waiting rows": "sum({rows_waiting}{JOB})"},
    ),
    ("KV cache, tokens", "short", 8, {"used": "sum({kv_used}{JOB})", "all": "sum({kv_tokens}{JOB})"}),
    ("Retries per second", "short", 4, {"": "sum(rate({retries}{JOB}[$__rate_interval]))"}),
    ("Lease age", "s", 4, {"": "max({lease_age_seconds}{JOB})"}),
    (
        "Errors by stage and kind",
        "short",
        24,
        {"{{stage}}/{{kind}}": "sum by (stage, kind) (increase({errors}{JOB}[$__rate_interval]))"},
    ),
]
ALERTS = [  # name, PromQL, how long it must hold, summary
    (
        "VlbatchRowsFail",
        'sum by (job_name) (rate({rows}{state="failed"}[15m])) / sum by (job_name) (rate({rows}[15m])) > 0.05',
        "10m",
        "More than 5 % of the rows of {{ $labels.job_name }} fail. See errors/ and the panel of errors by kind.",
    ),
    (
        "VlbatchInternalErrors",
        # not increase(), which misses a counter whose first sample is already one
        'sum by (job_name) ({errors}{stage="internal"})'
        ' > (sum by (job_name) ({errors}{stage="internal"} offset 15m) or 0 * sum by (job_name) ({errors}))',
        "0m",
        "Rows of {{ $labels.job_name }} failed with unexpected errors. Its dead letters hold the tracebacks.",
    ),
    (
        "VlbatchStalled",
        "sum by (job_name) ({rows_left}) > 0 unless sum by (job_name) (rate({rows}[30m])) > 0",
        "30m",
        "{{ $labels.job_name }} has rows left but finished none in the last 30 minutes.",
    ),
    (
        "VlbatchEnginesStarve",
        'sum by (job_name) (rate({seconds}{step="waited"}[15m]))'
        ' / sum by (job_name) (rate({seconds}{step=~"waited|worked"}[15m])) > 0.5',
        "30m",
        "Engines of {{ $labels.job_name }} wait for work more than half of the time. Raise workers.prepare.max.",
    ),
    (
        "VlbatchLeaseOld",
        "max by (job_name) ({lease_age_seconds}) > 60",
        "2m",
        "{{ $labels.job_name }} cannot renew its lease because its storage does not answer. Another run may take over.",
    ),
    (
        "VlbatchCacheFull",
        "sum by (job_name) ({kv_used}) / sum by (job_name) ({kv_tokens}) > 0.98"
        " and sum by (job_name) ({rows_waiting}) > 0"
        " and sum by (job_name) ({slots_busy}) < 0.5 * sum by (job_name) ({slots})",
        "30m",
        "{{ $labels.job_name }} is limited by its KV cache and not by its slots. Lower answer.max_new_tokens.",
    ),
]
LABELS = {
    "JOB": '{job_name=~"$job_name"}',
    "FAILED": '{job_name=~"$job_name", state="failed"}',
    "WAITED": '{job_name=~"$job_name", step="waited"}',
    "ENGINES": '{job_name=~"$job_name", step=~"waited|worked"}',
}


def expand_query(text: str) -> str:
    """Replace each {name} with the metric's full name and each {LABELS} with its label selector."""
    return re.sub(r"\{(\w+)\}", lambda match: LABELS.get(match[1]) or to_prometheus_name(match[1]), text)


def build_panel(
    number: int, position: tuple[int, int], title: str, unit: str, width: int, queries: dict[str, str]
) -> dict[str, Any]:
    x, y = position
    is_first_line = y == 0
    return {
        "id": number,
        "type": "stat" if is_first_line else "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "gridPos": {"x": x, "y": y, "w": width, "h": 4 if is_first_line else 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + index), "expr": expand_query(text), "legendFormat": legend or title}
            for index, (legend, text) in enumerate(queries.items())
        ],
    }


def build_dashboard() -> dict[str, Any]:
    panels, x, y = [], 0, 0
    for number, (title, unit, width, queries) in enumerate(PANELS, start=1):
        panels.append(build_panel(number, (x, y), title, unit, width, queries))
        x += width
        if x >= 24:
            x, y = 0, y + panels[-1]["gridPos"]["h"]
    names = f"label_values({to_prometheus_name('rows_left')}, job_name)"
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "source"},
        {
            "name": "job_name",
            "type": "query",
            "label": "job",
            "datasource": {"type": "prometheus", "uid": "$datasource"},
            "query": {"query": names, "refId": "names"},
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            "refresh": 2,
        },
        {"name": "gpu_hour_price", "type": "textbox", "label": "price of a GPU hour", "query": "2.00"},
    ]
    return {
        "uid": "vlbatch",
        "title": "vlbatch",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": panels,
        "description": "\n".join(f"{to_prometheus_name(name)}: {metric.meaning}" for name, metric in METRICS.items()),
    }


def build_rules() -> dict[str, Any]:
    rules = [
        {
            "alert": name,
            "expr": expand_query(text),
            "for": hold_time,
            "labels": {"severity": "warning"},
            "annotations": {"summary": summary},
        }
        for name, text, hold_time, summary in ALERTS
    ]
    return {"groups": [{"name": "vlbatch", "rules": rules}]}


def generate_files() -> dict[str, str]:
    head = "# Generated by generate.py from the table in pipeline/cluster/metrics.py.\n"
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vlbatch"},
        "spec": build_rules(),
    }
    return {
        "dashboard.json": json.dumps(build_dashboard(), indent=2) + "\n",
        "rules.yaml": head + yaml.safe_dump(build_rules(), sort_keys=False, width=200),
        "prometheus-rule.yaml": head + yaml.safe_dump(rule, sort_keys=False, width=200),
    }


if __name__ == "__main__":
    for name, text in generate_files().items():
        (HERE / name).write_text(text)
