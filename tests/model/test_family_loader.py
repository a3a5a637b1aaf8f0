"""A checkpoint's small files become a family, with the job's changes."""

import json
import shutil

import numpy as np
import pytest

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.job.model_section import ContextSection, ModelSection, RopeSection
from pipeline.model.family_loader import describe_yarn_risk, load_config, load_family, load_family_class
from pipeline.types import Clip, Turn


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "model", "qwen2_vl")


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def change_keys(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_an_unknown_family_is_refused_with_the_known_names(folder):
    change_keys(folder / "config.json", model_type="qwen4_vl")
    with pytest.raises(JobError, match=r"'qwen4_vl' is not known; known: qwen2_vl, .*Did you mean 'qwen\d_vl'"):
        load_family(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_without_a_needed_file_is_refused_by_its_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(JobError, match=f"no {name} in"):
        load_family(folder)


def test_a_broken_file_is_refused_by_its_name(folder):
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(JobError, match=r"preprocessor_config\.json is not JSON"):
        load_family(folder)


def test_overrides_change_nested_keys_and_keep_their_neighbours(folder):
    model = ModelSection(weights="x", overrides={"text_config": {"rms_norm_eps": 0.5}, "new": 1})
    before, changed = load_config(folder), load_config(folder, model)
    assert changed["text_config"] == before["text_config"] | {"rms_norm_eps": 0.5}
    assert changed["new"] == 1
    assert load_config(folder) == before


def test_a_job_may_name_another_family_than_the_checkpoint_does(folder):
    model = ModelSection(weights="x", family="qwen3_5")
    assert load_config(folder, model)["model_type"] == "qwen3_5"
    assert type(load_family(folder, model=model)) is load_family_class("qwen3_5")


def test_the_context_length_is_the_jobs_or_else_the_checkpoints(folder):
    model = ModelSection(weights="x", context=ContextSection(max_length=4000))
    assert load_family(folder).context_length == 32768
    assert load_family(folder, model=model).context_length == 4000


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_the_chat_template_is_found_in_every_usual_file(folder, where):
    change_keys(folder / "tokenizer_config.json", chat_template=None)
    template = (
        "<|im_start|>system\nYou see.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content[0].text }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n"
    )
    if where == "chat_template.jinja":
        (folder / where).write_text(template + "\n")
    else:
        (folder / where).touch()
        (folder / where).write_text(json.dumps({"chat_template": template + "\n"}))
    family = load_family(folder)
    assert family.thinking
    prompt = family.tokenizer.decode(family.encode_turns([Turn("user", ("Hi",))]).input_ids, skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>system\nYou see.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize("template", ["{{ messages[0].content[0].text }}", "{% if %}", "[INST]{{ messages }}"])
def test_a_template_of_another_format_is_refused(folder, template):
    change_keys(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(JobError, match="chat template"):
        load_family(folder)


def test_media_are_numbered_on_request(folder):
    family = load_family(folder, add_vision_id=True)
    clip = Clip("image", np.zeros((1, 3, 28, 28), np.uint8), (9, 9))
    ids = family.encode_turns([Turn("user", (clip, clip, "Compare"))]).input_ids
    assert family.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Picture 1: <|vision_start|><|image_pad|><|vision_end|>Picture 2: <|vision_start|><|image_pad|><|vision_end|>"
        "Compare<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("meanings", "is_warned"), [({"box"}, True), ({"seconds"}, True), ({"image"}, False), ((), False)]
)
def test_a_stretched_context_with_boxes_or_times_gives_a_warning(meanings, is_warned):
    stretched = ModelSection(weights="x", context=ContextSection(rope=RopeSection(factor=2)))
    assert bool(describe_yarn_risk(stretched, meanings)) == is_warned
    assert describe_yarn_risk(ModelSection(weights="x"), meanings) is None
