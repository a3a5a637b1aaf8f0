"""Reading job files: values, and errors with line, key and remedy."""

from __future__ import annotations

import pytest

from pipeline.errors import JobError
from pipeline.job.fingerprint import build_fingerprint_inputs, compute_fingerprint
from pipeline.job.job_loader import load_job, parse_job
from pipeline.job.reference import format_reference
from pipeline.job.spec import Job

MINIMAL = """\
name: small
input: {manifest: rows.jsonl, media: uri}
prompt: {user: "What is it?"}
model: {weights: builtin:tiny}
output: {path: out}
"""


def read_error(text: str, **arguments: object) -> str:
    with pytest.raises(JobError) as caught:
        parse_job(text, source_name="job.yaml", **{"environment": {}, **arguments})
    return str(caught.value)


def fingerprint(job: Job, weights: str = "w", schema: str | None = None) -> str:
    return compute_fingerprint(build_fingerprint_inputs(job, weights=weights, schema_text=schema))


def test_a_minimal_job_gets_the_defaults():
    job = parse_job(MINIMAL)
    assert job.input.manifest == ("rows.jsonl",)
    assert job.input.media == ("uri",)
    assert job.engine.kind == "torch"
    assert job.answer.max_new_tokens == 512


def test_an_unknown_key_is_reported_with_its_line_and_the_closest_key():
    message = read_error(MINIMAL + "answer:\n  max_new_token: 3\n")
    assert "job.yaml:7: answer.max_new_token: there is no such key" in message
    assert "'max_new_tokens'" in message


def test_a_missing_key_and_a_wrong_value_are_reported():
    assert "output: is needed" in read_error(MINIMAL.replace("output: {path: out}\n", ""))
    assert "job.yaml:7: answer.top_p" in read_error(MINIMAL + "answer:\n  top_p: 2\n")
    assert "job.yaml:6: engine: kind must be one of torch, scripted" in read_error(
        MINIMAL + "engine: {kind: torches}\n"
    )
    assert "folder, not a file" in read_error(MINIMAL.replace("path: out", "path: out.parquet"))


def test_all_problems_are_reported_together():
    message = read_error(MINIMAL + "answer:\n  top_p: 2\nmdia: {}\n")
    assert "answer.top_p" in message
    assert "job.yaml:8: mdia" in message
    assert "'media'" in message


def test_files_that_are_not_jobs_are_refused(tmp_path):
    assert read_error("name: [\n").startswith("job.yaml:2: is not valid YAML")
    assert "holds no keys" in read_error("- a\n")
    with pytest.raises(JobError, match="there is no such file"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(JobError, match="is a folder, and this command takes a job file"):
        load_job(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="not UTF-8"):
        load_job(tmp_path / "a.yaml")


def test_products_and_byte_sizes_are_parsed():
    arguments = (
        "media: {max_pixels: 1280*28*28}\nlimits: {image: {bytes: 64MiB, pixels: 180_000_000}, video: {bytes: 1.5GB}}\n"
    )
    job = parse_job(MINIMAL + arguments)
    assert job.media.max_pixels == 1280 * 28 * 28
    assert job.limits.image.bytes == 64 * 2**20
    assert job.limits.image.pixels == 180_000_000
    assert job.limits.video.bytes == 1_500_000_000
    assert "limits.image.bytes" in read_error(MINIMAL + "limits: {image: {bytes: 64 MiBs}}\n")
    assert "media.max_pixels" in read_error(MINIMAL + "media: {max_pixels: 0*28}\n")


def test_variables_are_filled_after_parsing():
    text = MINIMAL.replace("What is it?", "${Q} ${P:-or} $${Q}")
    assert parse_job(text, environment={"Q": "a: {b"}).prompt.user == "a: {b or ${Q}"
    message = read_error(text)
    assert "prompt.user: ${Q} is not set" in message
    assert "${Q:-default}" in message


def test_set_overrides_the_file():
    job = parse_job(MINIMAL, changes=["answer.max_new_tokens=64", "prompt.user=Why?", "input.media=[a, b]"])
    assert (job.answer.max_new_tokens, job.prompt.user, job.input.media) == (64, "Why?", ("a", "b"))
    assert "key.key=value" in read_error(MINIMAL, changes=["answer"])
    assert "has no keys" in read_error(MINIMAL, changes=["name.first=x"])
    assert "answer.max_tokens: there is no such key" in read_error(MINIMAL, changes=["answer.max_tokens=1"])


@pytest.mark.parametrize("text", ["{hint}", "{a}: {b}", "Find item #3: a [red] one", "12", "- first\n- second"])
def test_set_takes_text_literally(text):
    assert parse_job(MINIMAL, changes=[f"prompt.user={text}"]).prompt.user == text


def test_set_removes_quotes_and_understands_null():
    assert parse_job(MINIMAL, changes=['prompt.user="{hint}?"']).prompt.user == "{hint}?"
    assert parse_job(MINIMAL, changes=["prompt.system=null"]).prompt.system is None
    assert parse_job(MINIMAL, changes=["model.overrides={a: 1}", "engine.kind=scripted"]).model.overrides == {"a": 1}


def test_errors_in_set_are_attributed_to_set():
    assert "  --set: prompt.usr: there is no such key" in read_error(MINIMAL, changes=["prompt.usr=x"])
    assert "  --set: mdia: there is no such key" in read_error(MINIMAL, changes=["mdia.x=1"])


def test_text_that_yaml_reads_as_a_mapping_needs_quotes():
    assert "job.yaml:3: prompt.user: must be text; put it in quotes" in read_error(
        MINIMAL.replace('"What is it?"', "{hint}")
    )


def test_the_reference_lists_the_words_that_a_key_accepts():
    lines = "\n".join(format_reference(Job))
    assert "  kind: replies by rule, for tests of everything around the model  [scripted; needed]" in lines
    assert "[int4; default null]" in lines


def test_a_repeated_key_is_refused():
    message = read_error(MINIMAL + "answer:\n  top_k: 1\n  seed: 1\n  top_k: 2\n")
    assert "job.yaml:9: answer.top_k: is given twice" in message


@pytest.mark.parametrize("changes", [{"gpus": 1}, {"gpus": 2, "tensor_parallel": 4}, {"gpus": 2, "tensor_parallel": 1}])
def test_a_replica_needs_as_many_gpus_as_ranks(changes):
    tensor_parallel = changes.get("tensor_parallel", 2)
    message = read_error(
        MINIMAL, changes=[f"workers.generate.gpus={changes['gpus']}", f"model.tensor_parallel={tensor_parallel}"]
    )
    assert f"workers.generate.gpus is {changes['gpus']} and model.tensor_parallel is {tensor_parallel}" in message
    for gpus in (0, 2):
        assert parse_job(MINIMAL, changes=[f"workers.generate.gpus={gpus}", "model.tensor_parallel=2"])


@pytest.mark.parametrize("key", ["limits.deadline_s", "media.video.fps", "answer.temperature"])
def test_infinity_and_nan_are_refused(key):
    for value in (".inf", ".nan"):
        assert f"{key}: must be a finite number" in read_error(MINIMAL, changes=[f"{key}={value}"])


def test_a_section_whose_keys_are_all_commented_out_keeps_its_defaults():
    empty = MINIMAL + "answer:\n  # seed: 1\n"
    assert parse_job(empty) == parse_job(MINIMAL)
    assert parse_job(empty, changes=["answer.seed=3"]).answer.seed == 3
    assert "input: is needed" in read_error(MINIMAL.replace("input: {manifest: rows.jsonl, media: uri}", "input:"))
    assert "engine: must be a section with keys of its own (given: 'torch')" in read_error(MINIMAL + "engine: torch\n")


def test_workers_limits_and_paths_do_not_change_the_fingerprint():
    plain = fingerprint(parse_job(MINIMAL))
    for change in (
        "name=other",
        "workers.generate.max=4",
        "limits.deadline_s=1",
        "output.path=elsewhere",
        "input.manifest=more.jsonl",
        "engine={kind: torch, slots: 3}",
        "answer.max_new_tokens=512",
    ):
        assert fingerprint(parse_job(MINIMAL, changes=[change])) == plain, change


def test_settings_that_change_answers_change_the_fingerprint():
    job = parse_job(MINIMAL)
    changes = ("prompt.user=Why?", "answer.seed=1", "media.video.fps=1", "model.quantize=int4", "prompt.system=Hi")
    fingerprints = [fingerprint(parse_job(MINIMAL, changes=[change])) for change in changes]
    fingerprints += [fingerprint(job), fingerprint(job, weights="v"), fingerprint(job, schema="{}")]
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_new_semantics_version_is_another_question_and_the_first_is_not_hashed(monkeypatch):
    job = parse_job(MINIMAL)
    before = fingerprint(job)
    assert "semantics_version" not in build_fingerprint_inputs(job, weights="w", schema_text=None)
    monkeypatch.setattr("pipeline.job.fingerprint.SEMANTICS_VERSION", 2)
    assert build_fingerprint_inputs(job, weights="w", schema_text=None)["semantics_version"] == 2
    assert fingerprint(job) != before


def test_the_kind_of_engine_does_not_change_the_fingerprint_but_other_weights_do():
    def asked(engine: str) -> str:
        return fingerprint(parse_job(MINIMAL + f"engine: {engine}\n", environment={"KEY": "k"}))

    ours = asked("{slots: 4}")
    same = ["{kind: vllm, max_num_seqs: 8}", "{kind: http, url: 'http://a/v1', api_key: '${KEY}', jpeg: null}"]
    same.append("{kind: http, url: 'http://b/v1', model: 'builtin:tiny', concurrency: 3}")
    assert {asked(engine) for engine in same} == {ours}
    others = ["{kind: vllm, quantization: fp8}", "{kind: http, url: 'http://a/v1', jpeg: 80}"]
    others += ["{kind: http, url: 'http://a/v1', model: big}", "{kind: http, url: 'http://a/v1', body: {top_p: 0.5}}"]
    assert len({ours, *map(asked, others)}) == 5


def test_an_api_key_is_neither_fingerprinted_nor_stored():
    job = parse_job(
        MINIMAL + "engine: {kind: http, url: 'http://a/v1', api_key: '${KEY}'}\n", environment={"KEY": "hunter2"}
    )
    assert "hunter2" not in job.model_dump_json() + repr(job) + str(
        build_fingerprint_inputs(job, weights="w", schema_text=None)
    )


def test_keys_that_begin_with_x_hold_anchors():
    job = parse_job(MINIMAL + "x-shared: &shared {top_k: 3}\nanswer: {<<: *shared, max_new_tokens: 9}\n")
    assert (job.answer.top_k, job.answer.max_new_tokens) == (3, 9)
    assert "xy: there is no such key" in read_error(MINIMAL + "xy: 1\n")


@pytest.mark.parametrize("text", ["010", "1:30"])
def test_numbers_that_yaml_reads_otherwise_than_people_are_refused(text):
    assert f"job.yaml:6: {text} means" in read_error(MINIMAL + f"answer: {{seed: {text}}}\n")
    assert f"--set answer.seed={text}: {text} means" in read_error(MINIMAL, changes=[f"answer.seed={text}"])
    assert parse_job(MINIMAL, changes=[f"prompt.user={text}"]).prompt.user == text


def test_flash_attention_2_is_another_name_for_the_default_attention():
    """People bring the word from transformers. It must not make another question of the same job."""
    job, default = (parse_job(MINIMAL, changes=changes) for changes in (["model.attention=flash_attention_2"], []))
    assert job.model.attention == "auto"
    assert fingerprint(job) == fingerprint(default)
    assert "flash_attention_2" in "\n".join(format_reference(Job))
