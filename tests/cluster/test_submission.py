"""What `submit` sends to a cluster, whose dashboard shows it to everybody who can open it."""

from __future__ import annotations

from pipeline.cluster.submission import Submission, load_submission

JOB = """\
name: t
input: {manifest: "s3://scans/${TEAM}/m.parquet", media: uri}
prompt: {user: "For ${BOTH}: what is it?"}
model: {weights: "builtin:tiny"}
engine:
  kind: http
  url: http://127.0.0.1:1/v1
  model: m
  api_key: "${LLM_KEY}"
  body: {metadata: {team_key: "${BODY_KEY}"}, user: "${BOTH}"}
output: {path: "s3://labels/out"}
"""


def test_no_variable_that_may_hold_a_secret_is_sent(tmp_path, monkeypatch):
    (tmp_path / "job.yaml").write_text(JOB)
    for name in ("TEAM", "BOTH", "LLM_KEY", "BODY_KEY"):
        monkeypatch.setenv(name, f"value of {name}")
    job, sent_variables = load_submission(Submission(str(tmp_path / "job.yaml"), (), None, (), None, 60))
    assert job.engine.body["metadata"] == {"team_key": "value of BODY_KEY"}
    assert sent_variables == {"TEAM": "value of TEAM", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


def test_a_variable_of_the_body_may_be_set_on_the_cluster_alone(tmp_path, monkeypatch):
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.setenv("TEAM", "value of TEAM")
    for name in ("BOTH", "LLM_KEY", "BODY_KEY"):
        monkeypatch.delenv(name, raising=False)
    _, sent_variables = load_submission(Submission(str(tmp_path / "job.yaml"), (), None, (), None, 60))
    assert sent_variables == {"TEAM": "value of TEAM", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
