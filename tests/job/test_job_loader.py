"""A job file: what it says arrives, and what is wrong with it is said with line, key and remedy."""

from __future__ import annotations

import pytest

from pipeline.errors import JobError
from pipeline.job.fingerprint import build_fingerprint_inputs, compute_fingerprint
from pipeline.job.job_loader import load_job, parse_job
from pipeline.job.reference import format_reference
from pipeline.job.spec import Job

LEAST = """\
name: small
input: {manifest: rows.jsonl, media: uri}
prompt: {user: "What is it?"}
model: {weights: builtin:tiny}
output: {path: out}
"""


def wrong(text: str, **more: object) -> str:
    with pytest.raises(JobError) as caught:
        parse_job(text, source_name="job.yaml", **{"environment": {}, **more})
    return str(caught.value)


def mark(job: Job, weights: str = "w", schema: str | None = None) -> str:
    return compute_fingerprint(build_fingerprint_inputs(job, weights=weights, schema_text=schema))


def test_the_least_job():
    job = parse_job(LEAST)
    assert job.input.manifest == ("rows.jsonl",)
    assert job.input.media == ("uri",)
    assert job.engine.kind == "torch"
    assert job.answer.max_new_tokens == 512


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_right_one():
    message = wrong(LEAST + "answer:\n  max_new_token: 3\n")
    assert "job.yaml:7: answer.max_new_token: there is no such key" in message
    assert "'max_new_tokens'" in message


def test_a_missing_key_and_a_wrong_value():
    assert "output: is needed" in wrong(LEAST.replace("output: {path: out}\n", ""))
    assert "job.yaml:7: answer.top_p" in wrong(LEAST + "answer:\n  top_p: 2\n")
    assert "job.yaml:6: engine: kind must be one of torch, scripted" in wrong(LEAST + "engine: {kind: torches}\n")
    assert "folder, not a file" in wrong(LEAST.replace("path: out", "path: out.parquet"))


def test_all_that_is_wrong_is_said_at_once():
    message = wrong(LEAST + "answer:\n  top_p: 2\nmdia: {}\n")
    assert "answer.top_p" in message
    assert "job.yaml:8: mdia" in message
    assert "'media'" in message


def test_what_is_not_yaml_and_what_is_no_job(tmp_path):
    assert wrong("name: [\n").startswith("job.yaml:2: is not valid YAML")
    assert "holds no keys" in wrong("- a\n")
    with pytest.raises(JobError, match="there is no such file"):
        load_job(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="not UTF-8"):
        load_job(tmp_path / "a.yaml")


def test_products_and_sizes():
    more = (
        "media: {max_pixels: 1280*28*28}\nlimits: {image: {bytes: 64MiB, pixels: 180_000_000}, video: {bytes: 1.5GB}}\n"
    )
    job = parse_job(LEAST + more)
    assert job.media.max_pixels == 1280 * 28 * 28
    assert job.limits.image.bytes == 64 * 2**20
    assert job.limits.image.pixels == 180_000_000
    assert job.limits.video.bytes == 1_500_000_000
    assert "limits.image.bytes" in wrong(LEAST + "limits: {image: {bytes: 64 MiBs}}\n")
    assert "media.max_pixels" in wrong(LEAST + "media: {max_pixels: 0*28}\n")


def test_variables_are_filled_after_parsing():
    text = LEAST.replace("What is it?", "${Q} ${P:-or} $${Q}")
    assert parse_job(text, environment={"Q": "a: {b"}).prompt.user == "a: {b or ${Q}"
    message = wrong(text)
    assert "prompt.user: ${Q} is not set" in message
    assert "${Q:-default}" in message


def test_set_goes_over_the_file():
    job = parse_job(LEAST, changes=["answer.max_new_tokens=64", "prompt.user=Why?", "input.media=[a, b]"])
    assert (job.answer.max_new_tokens, job.prompt.user, job.input.media) == (64, "Why?", ("a", "b"))
    assert "key.key=value" in wrong(LEAST, changes=["answer"])
    assert "has no keys" in wrong(LEAST, changes=["name.first=x"])
    assert "answer.max_tokens: there is no such key" in wrong(LEAST, changes=["answer.max_tokens=1"])


@pytest.mark.parametrize("text", ["{hint}", "{a}: {b}", "Find item #3: a [red] one", "12", "- first\n- second"])
def test_text_that_is_set_is_taken_as_it_is(text):
    assert parse_job(LEAST, changes=[f"prompt.user={text}"]).prompt.user == text


def test_set_takes_quotes_off_and_knows_nothing_from_text():
    assert parse_job(LEAST, changes=['prompt.user="{hint}?"']).prompt.user == "{hint}?"
    assert parse_job(LEAST, changes=["prompt.system=null"]).prompt.system is None
    assert parse_job(LEAST, changes=["model.overrides={a: 1}", "engine.kind=scripted"]).model.overrides == {"a": 1}


def test_what_is_wrong_with_a_set_is_said_of_it_and_not_of_the_file():
    assert "  --set: prompt.usr: there is no such key" in wrong(LEAST, changes=["prompt.usr=x"])
    assert "  --set: mdia: there is no such key" in wrong(LEAST, changes=["mdia.x=1"])


def test_text_that_yaml_reads_as_keys_is_told_to_stand_in_quotes():
    assert "job.yaml:3: prompt.user: must be text; put it in quotes" in wrong(LEAST.replace('"What is it?"', "{hint}"))


def test_the_list_of_keys_says_which_words_a_key_takes():
    said = "\n".join(format_reference(Job))
    assert "  kind: replies by rule, for tests of everything around the model  [scripted; needed]" in said
    assert "[int4; default null]" in said


def test_a_key_given_twice():
    message = wrong(LEAST + "answer:\n  top_k: 1\n  seed: 1\n  top_k: 2\n")
    assert "job.yaml:9: answer.top_k: is given twice" in message


@pytest.mark.parametrize("changes", [{"gpus": 1}, {"gpus": 2, "tensor_parallel": 4}, {"gpus": 2, "tensor_parallel": 1}])
def test_a_replica_has_as_many_gpus_as_its_model_has_shares(changes):
    shares = changes.get("tensor_parallel", 2)
    message = wrong(LEAST, changes=[f"workers.generate.gpus={changes['gpus']}", f"model.tensor_parallel={shares}"])
    assert f"workers.generate.gpus is {changes['gpus']} and model.tensor_parallel is {shares}" in message
    for gpus in (0, 2):
        assert parse_job(LEAST, changes=[f"workers.generate.gpus={gpus}", "model.tensor_parallel=2"])


@pytest.mark.parametrize("key", ["limits.deadline_s", "media.video.fps", "answer.temperature"])
def test_a_number_without_end_is_none(key):
    for value in (".inf", ".nan"):
        assert f"{key}: must be a finite number" in wrong(LEAST, changes=[f"{key}={value}"])


def test_a_section_whose_keys_are_all_commented_out_says_nothing():
    empty = LEAST + "answer:\n  # seed: 1\n"
    assert parse_job(empty) == parse_job(LEAST)
    assert parse_job(empty, changes=["answer.seed=3"]).answer.seed == 3
    assert "input: is needed" in wrong(LEAST.replace("input: {manifest: rows.jsonl, media: uri}", "input:"))
    assert "engine: must be a section with keys of its own (given: 'torch')" in wrong(LEAST + "engine: torch\n")


def test_workers_limits_and_paths_leave_the_fingerprint_alone():
    plain = mark(parse_job(LEAST))
    for change in (
        "name=other",
        "workers.generate.max=4",
        "limits.deadline_s=1",
        "output.path=elsewhere",
        "input.manifest=more.jsonl",
        "engine={kind: torch, slots: 3}",
        "answer.max_new_tokens=512",
    ):
        assert mark(parse_job(LEAST, changes=[change])) == plain, change


def test_what_changes_an_answer_changes_the_fingerprint():
    job = parse_job(LEAST)
    changes = ("prompt.user=Why?", "answer.seed=1", "media.video.fps=1", "model.quantize=int4", "prompt.system=Hi")
    marks = [mark(parse_job(LEAST, changes=[change])) for change in changes]
    marks += [mark(job), mark(job, weights="v"), mark(job, schema="{}")]
    assert len(set(marks)) == len(marks)


def test_the_kind_of_engine_is_no_part_of_the_question_but_other_weights_are():
    def asked(engine: str) -> str:
        return mark(parse_job(LEAST + f"engine: {engine}\n", environment={"KEY": "k"}))

    ours = asked("{slots: 4}")
    same = ["{kind: vllm, max_num_seqs: 8}", "{kind: http, url: 'http://a/v1', api_key: '${KEY}', jpeg: null}"]
    same.append("{kind: http, url: 'http://b/v1', model: 'builtin:tiny', concurrency: 3}")
    assert {asked(engine) for engine in same} == {ours}
    others = ["{kind: vllm, quantization: fp8}", "{kind: http, url: 'http://a/v1', jpeg: 80}"]
    others += ["{kind: http, url: 'http://a/v1', model: big}", "{kind: http, url: 'http://a/v1', body: {top_p: 0.5}}"]
    assert len({ours, *map(asked, others)}) == 5


def test_a_key_is_neither_in_the_question_nor_in_the_stored_job():
    job = parse_job(
        LEAST + "engine: {kind: http, url: 'http://a/v1', api_key: '${KEY}'}\n", environment={"KEY": "hunter2"}
    )
    assert "hunter2" not in job.model_dump_json() + repr(job) + str(
        build_fingerprint_inputs(job, weights="w", schema_text=None)
    )
