"""Each family against transformers' own processors, and against the definition where those are wrong."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.media.resize import resize
from pipeline.model.engines.torch.vision_encoder import patchify
from pipeline.model.family_loader import load_family
from pipeline.model.prompt import parse_chat_template
from pipeline.types import Clip, MediaOptions, Turn
from tests import qwen_vocabulary
from tests.model import chat_templates, oracle, reference

torch.set_num_threads(1)
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "thinking")
VOCABULARIES = ("tiny", "real")
LONG = {"seed": 7, "size": (70, 60), "count": 90, "fps": 25.0}
SHORT = {"seed": 8, "size": (130, 210), "count": 11, "fps": 10.0}


def image():
    return {"type": "image"}


def video():
    return {"type": "video"}


def text(words):
    return {"type": "text", "text": words}


def said(role, *content):
    return {"role": role, "content": [text(part) if isinstance(part, str) else part for part in content]}


CONVERSATIONS = {
    "text": {"messages": [said("user", "What is 7 x 6?  Answer:\n\n  naïve café ﬁn 你好 🙂 — 12,345.67 can't")]},
    "system": {"messages": [said("system", "Be brief."), said("user", "Hi")]},
    "one picture": {"messages": [said("user", image(), "What is it?")], "images": [[1, 61, 47]]},
    "text first": {"messages": [said("user", "Look: ", image(), "?")], "images": [[2, 300, 33]]},
    "three pictures": {
        "messages": [said("user", image(), image(), "Compare", image())],
        "images": [[3, 5, 200], [4, 640, 480], [5, 100, 101]],
    },
    "labels and a video": {
        "messages": [
            said("user", image(), image(), video(), "Which?"),
            said("assistant", "One."),
            said("user", image()),
        ],
        "images": [[3, 60, 70], [4, 70, 60], [5, 99, 98]],
        "videos": [SHORT],
        "label": True,
    },
    "one video": {"messages": [said("user", video(), "What happens?")], "videos": [SHORT]},
    "videos and pictures": {
        "messages": [said("user", video(), "then", image(), "and", video(), "tell")],
        "images": [[6, 81, 95]],
        "videos": [LONG, SHORT],
    },
    "chat": {
        "messages": [
            said("system", "Be kind."),
            said("user", image(), "Who?"),
            said("assistant", "A cat."),
            said("user", "Sure?  "),
        ],
        "images": [[1, 61, 47]],
    },
    "thoughts": {
        "messages": [
            said("user", "Who?"),
            said("assistant", "<think>\nhm\n</think>\n\nA cat."),
            said("user", "Sure?"),
        ],
    },
}


def folder_of(kind, vocabulary, root):
    """A checkpoint's small files."""
    folder = write_random_checkpoint(root / f"{kind}-{vocabulary}", "qwen3_vl" if kind == "thinking" else kind)
    (folder / "model.safetensors").unlink()
    if vocabulary == "real":
        qwen_vocabulary.tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    template = chat_templates.QWEN2 if kind.startswith("qwen2") else chat_templates.QWEN3
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said["chat_template"] = chat_templates.THINKING if kind == "thinking" else template
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def prepared(family, question):
    """The conversation as turns of Clips, as the media code would make them, and each video's frames."""
    images = iter(question.get("images", []))
    videos = iter(question.get("videos", []))
    turns, chosen = [], []
    for message in question["messages"]:
        parts = []
        for part in message["content"]:
            if part["type"] == "image":
                spec = next(images)
                pixels = resize(oracle.picture(*spec)[None], family.fit_image_size((spec[1], spec[2]), MediaOptions()))
                parts.append(Clip("image", pixels, (spec[1], spec[2])))
            elif part["type"] == "video":
                spec = next(videos)
                indices = family.select_frames(range(spec["count"]), spec["fps"], MediaOptions())
                size = family.fit_video_size(spec["size"], len(indices), MediaOptions())
                pixels = resize(oracle.picture(spec["seed"], *spec["size"], spec["count"])[indices], size)
                fps = len(indices) / spec["count"] * spec["fps"]
                times = tuple(index / spec["fps"] for index in indices)
                parts.append(Clip("video", pixels, spec["size"], times=times, fps=fps))
                chosen.append(indices)
            else:
                parts.append(part["text"])
        turns.append(Turn(message["role"], tuple(parts)))
    return turns, chosen


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """For each family, vocabulary and conversation: ours, its turns, and the oracle's."""
    root = tmp_path_factory.mktemp("families")
    ours, questions = {}, []
    for kind in KINDS:
        for vocabulary in VOCABULARIES:
            folder = folder_of(kind, vocabulary, root)
            plain = load_family(folder)
            labelled = copy.copy(plain)
            labelled.add_vision_id = True
            for name, question in CONVERSATIONS.items():
                family = labelled if question.get("label") else plain
                turns, chosen = prepared(family, question)
                videos = [spec | {"indices": at} for spec, at in zip(question.get("videos", []), chosen, strict=True)]
                questions.append(question | {"folder": str(folder), "videos": videos, "pixels": vocabulary == "tiny"})
                ours[kind, vocabulary, name] = family, turns, family.encode_turns(turns)
    asked, answered = root / "questions.json", root / "answers.pickle"
    asked.write_text(json.dumps(questions))
    subprocess.run([sys.executable, str(Path(oracle.__file__)), str(asked), str(answered)], check=True)
    return {key: (*ours[key], found) for key, found in zip(ours, pickle.loads(answered.read_bytes()), strict=True)}


def grids_of(family, turns):
    """Grids in tokens and seconds a layer, as the definition wants them."""
    grids, seconds = [], []
    for turn in turns:
        for clip in (part for part in turn.parts if isinstance(part, Clip)):
            width, height = (side // family.factor for side in clip.size)
            layers = -(-len(clip.pixels) // 2)
            timed = clip.kind == "video" and hasattr(family, "tokens_per_second")
            alone = clip.kind == "video" and family.patch_size == 16
            grids += [(1, height, width)] * layers if alone else [(layers, height, width)]
            seconds += [None] * layers if alone else [2 / clip.fps if timed else None]
    return grids, seconds


every = pytest.mark.parametrize(
    ("kind", "vocabulary", "name"),
    [(kind, vocabulary, name) for kind in KINDS for vocabulary in VOCABULARIES for name in CONVERSATIONS],
)


@every
def test_the_prompt_is_the_reference_template_s(compared, kind, vocabulary, name):
    _, _, encoded, found = compared[kind, vocabulary, name]
    assert encoded.input_ids.tolist() == found["ids"].tolist()


@every
def test_positions_are_those_of_the_definition(compared, kind, vocabulary, name):
    family, turns, encoded, found = compared[kind, vocabulary, name]
    grids, seconds = grids_of(family, turns)
    pads = (family.image_token, family.video_token)
    rate = getattr(family, "tokens_per_second", 1)
    ids = encoded.input_ids.tolist()
    assert encoded.positions.tolist() == reference.positions(
        ids, grids, pads=pads, seconds_per_layer=seconds, tokens_per_second=rate
    )
    if "video" not in name or not kind.startswith("qwen2"):
        assert np.array_equal(encoded.positions, found["positions"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_pixels_are_the_reference_processor_s_bit_for_bit(compared, kind, name):
    family, turns, encoded, found = compared[kind, "tiny", name]
    patches = {"image": [], "video": []}
    grids = {"image": [], "video": []}
    for clip in (part for turn in turns for part in turn.parts if isinstance(part, Clip)):
        width, height = (side // family.patch_size for side in clip.size)
        grid = (-(-len(clip.pixels) // 2), height, width)
        grids[clip.kind].append(list(grid))
        patches[clip.kind].append(patchify(torch.from_numpy(clip.pixels), grid, family))
    for kind_of, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        assert (pixels in found) == bool(patches[kind_of])
        if patches[kind_of]:
            assert grids[kind_of] == found[f"{kind_of}_grid_thw"].tolist()
            assert np.array_equal(torch.cat(patches[kind_of]).numpy(), found[pixels])
    pads = np.isin(encoded.input_ids, (family.image_token, family.video_token)).sum()
    assert encoded.vision_tokens == pads == sum(np.prod(grid) // 4 for found in grids.values() for grid in found)


def test_a_template_that_marks_what_was_trained_is_read_like_any_other():
    """As trl saves it with a checkpoint: tags that only transformers' own Jinja knows."""
    marked = chat_templates.QWEN3.replace(
        "{%- set said", "{%- if message.role == 'tool' -%}{%- continue -%}{%- endif -%}{%- generation -%}{%- set said"
    ).replace("{%- endfor -%}{%- if add", "{%- endgeneration -%}{%- endfor -%}{%- if add")
    assert marked.count("generation -%}") == 2
    assert parse_chat_template(marked) == parse_chat_template(chat_templates.QWEN3)
