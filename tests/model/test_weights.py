"""Where checkpoints come from, what names them, and what a job changes in them."""

import json
import shutil

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.job.spec import ContextSection, ModelSection, RopeSection
from pipeline.model import hf_models, weights
from pipeline.types import Clip, Turn

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "model", "qwen2_vl")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLBATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(made, monkeypatch, cache):
    """An S3 bucket that holds the checkpoint under models/tiny."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    store = boto3.client("s3")
    store.create_bucket(Bucket="acme")
    for file in made.iterdir():
        store.upload_file(str(file), "acme", f"models/tiny/{file.name}")
    yield store
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_folder_is_used_as_it_is(folder):
    assert weights.locate_checkpoint(str(folder)) == weights.locate_small_files(f"file://{folder}") == folder


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused():
    with pytest.raises(JobError, match=r"\./nowhere/at/all is not a folder"):
        weights.locate_checkpoint("./nowhere/at/all")


def test_a_remote_folder_is_copied_once_and_its_weights_only_when_they_are_needed(bucket, made):
    small = weights.locate_small_files("s3://acme/models/tiny")
    assert not (small / "model.safetensors").exists()
    assert weights.load_family(small).patch == 14
    whole = weights.locate_checkpoint("s3://acme/models/tiny/")
    assert whole == small
    assert {file.name: file.read_bytes() for file in made.iterdir()} == {
        file.name: file.read_bytes() for file in whole.iterdir() if file.name != ".lock"
    }
    bucket.delete_object(Bucket="acme", Key="models/tiny/generation_config.json")
    bucket.put_object(Bucket="acme", Key="models/tiny/generation_config.json", Body=b"{}")
    assert weights.locate_checkpoint("s3://acme/models/tiny") != whole


def test_half_a_download_is_not_taken_for_a_whole_one(bucket):
    folder = weights.locate_small_files("s3://acme/models/tiny")
    (folder / "model.safetensors.part").write_bytes(b"half")
    whole = weights.locate_checkpoint("s3://acme/models/tiny")
    assert (whole / "model.safetensors").stat().st_size > 10_000
    assert not (whole / "model.safetensors.part").exists()


@pytest.mark.parametrize("url", ["s3://acme/models/none", "s3://nobody/x", "nope://host/x"])
def test_a_remote_folder_that_cannot_be_read_is_an_error_about_the_job(bucket, url):
    with pytest.raises(JobError, match=url):
        weights.locate_checkpoint(url)


def test_the_same_checkpoint_has_one_identity_wherever_it_lies(bucket, made, folder):
    here = weights.compute_identity(str(folder))
    assert here == weights.compute_identity(str(made)) == weights.compute_identity("s3://acme/models/tiny")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_another_small_file_is_another_identity(folder, name):
    before = weights.compute_identity(str(folder))
    change(folder / name, something="else")
    assert weights.compute_identity(str(folder)) != before


@pytest.mark.parametrize("at", [100, -100])
def test_other_weights_are_another_identity(folder, at, monkeypatch):
    monkeypatch.setattr(weights, "SAMPLE_BYTES", 2000)
    before = weights.compute_identity(str(folder))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    assert weights.compute_identity(str(folder)) != before


def test_a_hub_id_is_taken_from_the_hub_s_cache_and_named_by_its_commit(made, tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(made, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.locate_checkpoint("acme/tiny") == repository / "snapshots" / COMMIT
    assert weights.compute_identity("acme/tiny") == COMMIT
    with pytest.raises(JobError, match="acme/other at v2: the hub "):
        weights.locate_checkpoint("acme/other", "v2")


@pytest.mark.parametrize("name", weights.BUILTIN_NAMES)
def test_a_built_in_model_is_there_and_loads_as_any_other(name):
    folder = weights.locate_checkpoint(f"builtin:{name}")
    assert weights.locate_small_files(f"builtin:{name}") == folder
    family = weights.load_family(folder)
    model, report = hf_models.get_model_class(weights.load_config(folder)["model_type"]).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    assert model.config.image_token_id == family.image_token


def test_an_unknown_built_in_model_is_refused_with_those_there_are():
    with pytest.raises(JobError, match=r"builtin:huge; there is builtin:tiny"):
        weights.locate_checkpoint("builtin:huge")


def test_an_unknown_family_is_refused_with_those_there_are(folder):
    change(folder / "config.json", model_type="qwen4_vl")
    with pytest.raises(JobError, match=r"'qwen4_vl' is not known; known: qwen2_vl, .*Did you mean 'qwen\d_vl'"):
        weights.load_family(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_without_a_needed_file_is_refused_by_its_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(JobError, match=f"no {name} in"):
        weights.load_family(folder)


def test_a_broken_file_is_refused_by_its_name(folder):
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(JobError, match=r"preprocessor_config\.json is not JSON"):
        weights.load_family(folder)


def test_a_job_changes_nested_keys_and_leaves_their_neighbours(folder):
    model = ModelSection(weights="x", overrides={"text_config": {"rms_norm_eps": 0.5}, "new": 1})
    before, said = weights.load_config(folder), weights.load_config(folder, model)
    assert said["text_config"] == before["text_config"] | {"rms_norm_eps": 0.5}
    assert said["new"] == 1
    assert weights.load_config(folder) == before


def test_the_longest_row_is_what_the_job_says_or_else_the_checkpoint(folder):
    model = ModelSection(weights="x", context=ContextSection(max_length=4000))
    assert weights.load_family(folder).context_length == 32768
    assert weights.load_family(folder, model=model).context_length == 4000


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_chat_template_is_found_where_checkpoints_keep_it(folder, where):
    change(folder / "tokenizer_config.json", chat_template=None)
    template = (
        "<|im_start|>system\nYou see.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content[0].text }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n"
    )
    if where == "chat_template.jinja":
        (folder / where).write_text(template + "\n")
    else:
        (folder / where).touch()
        (folder / where).write_text(json.dumps({"chat_template": template + "\n"}))
    family = weights.load_family(folder)
    assert family.thinking
    prompt = family.tokenizer.decode(family.encode_turns([Turn("user", ("Hi",))]).input_ids, skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nYou see.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize("template", ["{{ messages[0].content[0].text }}", "{% if %}", "[INST]{{ messages }}"])
def test_a_template_of_another_kind_is_refused(folder, template):
    change(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(JobError, match="chat template"):
        weights.load_family(folder)


def test_media_are_labelled_on_request(folder):
    family = weights.load_family(folder, add_vision_id=True)
    clip = Clip("image", np.zeros((1, 3, 28, 28), np.uint8), (9, 9))
    ids = family.encode_turns([Turn("user", (clip, clip, "Compare"))]).input_ids
    assert family.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Picture 1: <|vision_start|><|image_pad|><|vision_end|>Picture 2: <|vision_start|><|image_pad|><|vision_end|>"
        "Compare<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("means", "told"), [({"box"}, True), ({"seconds"}, True), ({"image"}, False), ((), False)])
def test_a_stretched_model_that_is_asked_for_places_or_times_comes_with_a_caution(means, told):
    stretched = ModelSection(weights="x", context=ContextSection(rope=RopeSection(factor=2)))
    assert bool(weights.describe_yarn_risk(stretched, means)) == told
    assert weights.describe_yarn_risk(ModelSection(weights="x"), means) is None
