"""Checkpoints are found in folders, buckets, the hub and the package, and identified by their content."""

import io
import json
import re
import shutil
import sys
from contextlib import closing

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.answer import Answerer
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.job.model_section import ModelSection
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.model import checkpoint_location, hf_models
from pipeline.model.checkpoint_location import (
    compute_adapter_identity,
    compute_identity,
    locate_adapter,
    locate_adapter_config,
    locate_checkpoint,
    locate_small_files,
)
from pipeline.model.family_loader import load_config, load_family
from pipeline.run.preflight import build_run_context

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "model", "qwen2_vl")


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLBATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(checkpoint, monkeypatch, cache):
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
    for file in checkpoint.iterdir():
        store.upload_file(str(file), "acme", f"models/tiny/{file.name}")
    yield store
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def change_keys(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_folder_is_used_in_place(folder):
    assert locate_checkpoint(str(folder)) == locate_small_files(f"file://{folder}") == folder


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused():
    with pytest.raises(JobError, match=r"\./nowhere/at/all is not a folder"):
        locate_checkpoint("./nowhere/at/all")


def test_a_remote_folder_is_copied_once_and_weights_only_when_needed(bucket, checkpoint):
    small = locate_small_files("s3://acme/models/tiny")
    assert not (small / "model.safetensors").exists()
    assert load_family(small).patch_size == 14
    whole = locate_checkpoint("s3://acme/models/tiny/")
    assert whole == small
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == {
        file.name: file.read_bytes() for file in whole.iterdir() if not file.name.startswith(".")
    }
    bucket.delete_object(Bucket="acme", Key="models/tiny/generation_config.json")
    bucket.put_object(Bucket="acme", Key="models/tiny/generation_config.json", Body=b"{}")
    assert locate_checkpoint("s3://acme/models/tiny") != whole


def test_a_terminal_shows_how_much_of_the_weights_is_copied(bucket, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    locate_small_files("s3://acme/models/tiny")
    assert terminal.getvalue() == ""
    locate_checkpoint("s3://acme/models/tiny")
    shown = terminal.getvalue()
    assert re.search(r"model\.safetensors: +\d+%.*/\d+k .*B/s", shown), shown


def test_an_adapter_is_found_and_identified_as_weights_are(bucket):
    for name, data in (("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"weights")):
        bucket.put_object(Bucket="acme", Key=f"adapters/one/{name}", Body=data)
    model = ModelSection(weights="builtin:tiny", adapter="s3://acme/adapters/one")
    identity = compute_adapter_identity(model)
    pinned = model.model_copy(update={"adapter_revision": identity})
    assert not (locate_adapter_config(pinned) / "adapter_model.safetensors").exists()
    assert (locate_adapter(pinned) / "adapter_model.safetensors").read_bytes() == b"weights"
    bucket.put_object(Bucket="acme", Key="adapters/one/adapter_model.safetensors", Body=b"others!")
    with pytest.raises(
        JobError, match=r"^model\.adapter: the files of s3://acme/adapters/one .* are not those of this run"
    ):
        locate_adapter(pinned)


def test_a_partial_download_is_fetched_again(bucket):
    folder = locate_small_files("s3://acme/models/tiny")
    (folder / "model.safetensors.part").write_bytes(b"half")
    whole = locate_checkpoint("s3://acme/models/tiny")
    assert (whole / "model.safetensors").stat().st_size > 10_000
    assert not (whole / "model.safetensors.part").exists()


@pytest.mark.parametrize("url", ["s3://acme/models/none", "s3://nobody/x", "nope://host/x"])
def test_an_unreadable_remote_folder_is_a_job_error(bucket, url):
    with pytest.raises(JobError, match=url):
        locate_checkpoint(url)


def test_a_checkpoint_has_the_same_identity_in_every_location(bucket, checkpoint, folder):
    here = compute_identity(str(folder))
    assert here == compute_identity(str(checkpoint)) == compute_identity("s3://acme/models/tiny")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_changed_small_file_changes_the_identity(folder, name):
    before = compute_identity(str(folder))
    change_keys(folder / name, something="else")
    assert compute_identity(str(folder)) != before


@pytest.mark.parametrize("at", [100, -100])
def test_changed_weights_change_the_identity(folder, at, monkeypatch):
    monkeypatch.setattr(checkpoint_location, "SAMPLE_BYTES", 2000)
    before = compute_identity(str(folder))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    assert compute_identity(str(folder)) != before


def test_a_folder_that_was_changed_is_not_loaded_as_the_revision_before(folder):
    before = compute_identity(str(folder))
    assert locate_checkpoint(str(folder), before) == folder
    changed = shutil.copytree(folder, folder.with_name("changed"))
    change_keys(changed / "config.json", something="else")
    with pytest.raises(JobError, match="are not those of this run"):
        locate_small_files(str(changed), before)


def test_a_remote_folder_that_was_replaced_is_not_loaded_as_the_revision_before(bucket):
    before = compute_identity("s3://acme/models/tiny")
    assert locate_small_files("s3://acme/models/tiny", before)
    bucket.put_object(Bucket="acme", Key="models/tiny/model.safetensors", Body=b"other weights")
    with pytest.raises(JobError, match=r"s3://acme/models/tiny on .* are not those of this run"):
        locate_checkpoint("s3://acme/models/tiny", before)


def test_a_remote_folder_that_changes_during_the_copy_is_refused(bucket, monkeypatch):
    import s3fs

    copy = s3fs.S3FileSystem.get_file

    def copy_then_replace(self, *arguments, **options):
        copy(self, *arguments, **options)
        bucket.put_object(Bucket="acme", Key="models/tiny/config.json", Body=b"{}")

    monkeypatch.setattr(s3fs.S3FileSystem, "get_file", copy_then_replace)
    with pytest.raises(JobError, match="s3://acme/models/tiny was changed while it was read"):
        locate_small_files("s3://acme/models/tiny")


def test_the_identity_of_a_copy_is_computed_once(bucket, monkeypatch):
    before = compute_identity("s3://acme/models/tiny")
    monkeypatch.setattr(checkpoint_location, "SAMPLE_BYTES", 0)  # would give another digest
    assert compute_identity("s3://acme/models/tiny") == before


@pytest.fixture
def hub(checkpoint, tmp_path, monkeypatch):
    """The hub's cache on this machine, with one model. Returns the model's folder in it."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


def test_a_hub_id_is_found_in_the_hub_cache_and_identified_by_its_commit(hub):
    assert locate_checkpoint("acme/tiny") == hub / "snapshots" / COMMIT
    assert compute_identity("acme/tiny") == COMMIT
    with pytest.raises(JobError, match="acme/other at v2: the hub "):
        locate_checkpoint("acme/other", "v2")


def test_workers_load_the_commit_of_the_run_after_the_branch_moved(hub, workspace):
    """The new commit has no weights, so an engine that followed the branch would not start."""
    workspace.write_manifest(workspace.draw_images(1))
    model = {"weights": "acme/tiny", "dtype": "float32"}
    job = Job.model_validate(workspace.build_job(model=model, engine={"kind": "torch", "slots": 1}))
    context = build_run_context(job, list_manifest_files(job))
    later = shutil.copytree(hub / "snapshots" / COMMIT, hub / "snapshots" / COMMIT[::-1])
    (later / "model.safetensors").unlink()
    change_keys(later / "config.json", model_type="another")
    (hub / "refs" / "main").write_text(later.name)
    with closing(Answerer(context)) as answerer:
        assert answerer.family.coordinates == "thousandths"
    assert context.job.model.revision is None  # and so the fingerprint is that of the job as it was given


@pytest.mark.parametrize("name", checkpoint_location.BUILTIN_NAMES)
def test_a_builtin_model_loads_like_any_other(name):
    folder = locate_checkpoint(f"builtin:{name}")
    assert locate_small_files(f"builtin:{name}") == folder
    family = load_family(folder)
    model, report = hf_models.get_model_class(load_config(folder)["model_type"]).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    assert model.config.image_token_id == family.image_token


def test_an_unknown_builtin_model_is_refused_with_the_known_names():
    with pytest.raises(JobError, match=r"builtin:huge; there is builtin:tiny"):
        locate_checkpoint("builtin:huge")
