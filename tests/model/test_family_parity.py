"""Each family against transformers' processors, and against the definition where those are wrong."""

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

pytestmark = pytest.mark.process

torch.set_num_threads(1)
KINDS = {  # model_type, chat template, and what the job says about thinking
    "qwen2_vl": ("qwen2_vl", chat_templates.QWEN2, None),
    "qwen2_5_vl": ("qwen2_5_vl", chat_templates.QWEN2, None),
    "qwen3_vl": ("qwen3_vl", chat_templates.QWEN3, None),
    "qwen3_vl_moe": ("qwen3_vl_moe", chat_templates.QWEN3, None),
    "thinking": ("qwen3_vl", chat_templates.THINKING, None),
    "qwen3_5": ("qwen3_5", chat_templates.QWEN35, None),
    "qwen3_5_moe": ("qwen3_5_moe", chat_templates.QWEN38, False),
}
VOCABULARIES = ("tiny", "real")
LONG_VIDEO = {"seed": 7, "size": (70, 60), "count": 90, "fps": 25.0}
SHORT_VIDEO = {"seed": 8, "size": (130, 210), "count": 11, "fps": 10.0}


def image():
    return {"type": "image"}


def video():
    return {"type": "video"}


def text(words):
    return {"type": "text", "text": words}


def make_message(role, *content):
    return {"role": role, "content": [text(part) if isinstance(part, str) else part for part in content]}


CONVERSATIONS = {
    "text": {
        "messages": [make_message("user", "What is 7 x 6?  Answer:\n\n  naïve café ﬁn 你好 🙂 — 12,345.67 can't")]
    },
    "system": {"messages": [make_message("system", "Be brief."), make_message("user", "Hi")]},
    "one picture": {"messages": [make_message("user", image(), "What is it?")], "images": [[1, 61, 47]]},
    "text first": {"messages": [make_message("user", "Look: ", image(), "?")], "images": [[2, 300, 33]]},
    "three pictures": {
        "messages": [make_message("user", image(), image(), "Compare", image())],
        "images": [[3, 5, 200], [4, 640, 480], [5, 100, 101]],
    },
    "labels and a video": {
        "messages": [
            make_message("user", image(), image(), video(), "Which?"),
            make_message("assistant", "One."),
            make_message("user", image()),
        ],
        "images": [[3, 60, 70], [4, 70, 60], [5, 99, 98]],
        "videos": [SHORT_VIDEO],
        "label": True,
    },
    "one video": {"messages": [make_message("user", video(), "What happens?")], "videos": [SHORT_VIDEO]},
    "videos and pictures": {
        "messages": [make_message("user", video(), "then", image(), "and", video(), "tell")],
        "images": [[6, 81, 95]],
        "videos": [LONG_VIDEO, SHORT_VIDEO],
    },
    "chat": {
        "messages": [
            make_message("system", "Be kind."),
            make_message("user", image(), "Who?"),
            make_message("assistant", "A cat."),
            make_message("user", "Sure?  "),
        ],
        "images": [[1, 61, 47]],
    },
    "thoughts": {
        "messages": [
            make_message("user", "Who?"),
            make_message("assistant", "<think>\nhm\n</think>\n\nA cat."),
            make_message("user", "Sure?"),
        ],
    },
}


def write_small_files(kind, vocabulary, root):
    """A checkpoint without weights."""
    model_type, template, _ = KINDS[kind]
    folder = write_random_checkpoint(root / f"{kind}-{vocabulary}", model_type)
    (folder / "model.safetensors").unlink()
    if vocabulary == "real":
        qwen_vocabulary.tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"chat_template": template}))
    return folder


def build_turns(family, question):
    """The conversation as turns of Clips, like those of the media code, and each video's selected frames."""
    images = iter(question.get("images", []))
    videos = iter(question.get("videos", []))
    turns, chosen = [], []
    for message in question["messages"]:
        parts = []
        for part in message["content"]:
            if part["type"] == "image":
                spec = next(images)
                pixels = resize(
                    oracle.create_pixels(*spec)[None], family.fit_image_size((spec[1], spec[2]), MediaOptions())
                )
                parts.append(Clip("image", pixels, (spec[1], spec[2])))
            elif part["type"] == "video":
                spec = next(videos)
                indices = family.select_frames(range(spec["count"]), spec["fps"], MediaOptions())
                size = family.fit_video_size(spec["size"], len(indices), MediaOptions())
                pixels = resize(oracle.create_pixels(spec["seed"], *spec["size"], spec["count"])[indices], size)
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
    """By family, vocabulary and conversation: the family, its turns, its prompt, and what the oracle expects."""
    root = tmp_path_factory.mktemp("families")
    ours, questions = {}, []
    for kind in KINDS:
        for vocabulary in VOCABULARIES:
            folder = write_small_files(kind, vocabulary, root)
            thinking = KINDS[kind][2]
            plain = load_family(folder, thinking=thinking)
            template_options = {} if thinking is None else {"enable_thinking": thinking}
            labelled = copy.copy(plain)
            labelled.add_vision_id = True
            for name, question in CONVERSATIONS.items():
                family = labelled if question.get("label") else plain
                turns, chosen = build_turns(family, question)
                videos = [spec | {"indices": at} for spec, at in zip(question.get("videos", []), chosen, strict=True)]
                case = {"folder": str(folder), "videos": videos, "pixels": vocabulary == "tiny"}
                questions.append(question | case | {"template_options": template_options})
                ours[kind, vocabulary, name] = family, turns, family.encode_turns(turns)
    cases_path, results_path = root / "cases.json", root / "results.pickle"
    cases_path.write_text(json.dumps(questions))
    subprocess.run([sys.executable, str(Path(oracle.__file__)), str(cases_path), str(results_path)], check=True)
    return {
        key: (*ours[key], result) for key, result in zip(ours, pickle.loads(results_path.read_bytes()), strict=True)
    }


def list_grids(family, turns):
    """Grids in tokens and the seconds of a layer, as `reference.compute_positions` takes them."""
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


all_conversations = pytest.mark.parametrize(
    ("kind", "vocabulary", "name"),
    [(kind, vocabulary, name) for kind in KINDS for vocabulary in VOCABULARIES for name in CONVERSATIONS],
)


@all_conversations
def test_the_prompt_is_that_of_the_reference_template(compared, kind, vocabulary, name):
    _, _, encoded, expected = compared[kind, vocabulary, name]
    assert encoded.input_ids.tolist() == expected["ids"].tolist()


@all_conversations
def test_positions_follow_the_definition(compared, kind, vocabulary, name):
    family, turns, encoded, expected = compared[kind, vocabulary, name]
    grids, seconds = list_grids(family, turns)
    pads = (family.image_token, family.video_token)
    rate = getattr(family, "tokens_per_second", 1)
    ids = encoded.input_ids.tolist()
    assert encoded.positions.tolist() == reference.compute_positions(
        ids, grids, pads=pads, seconds_per_layer=seconds, tokens_per_second=rate
    )
    if "video" not in name or not kind.startswith("qwen2"):
        assert np.array_equal(encoded.positions, expected["positions"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_pixels_equal_those_of_the_reference_processor_bit_for_bit(compared, kind, name):
    family, turns, encoded, expected = compared[kind, "tiny", name]
    patches = {"image": [], "video": []}
    grids = {"image": [], "video": []}
    for clip in (part for turn in turns for part in turn.parts if isinstance(part, Clip)):
        width, height = (side // family.patch_size for side in clip.size)
        grid = (-(-len(clip.pixels) // 2), height, width)
        grids[clip.kind].append(list(grid))
        patches[clip.kind].append(patchify(torch.from_numpy(clip.pixels), grid, family))
    for kind_of, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        assert (pixels in expected) == bool(patches[kind_of])
        if patches[kind_of]:
            assert grids[kind_of] == expected[f"{kind_of}_grid_thw"].tolist()
            assert np.array_equal(torch.cat(patches[kind_of]).numpy(), expected[pixels])
    pads = np.isin(encoded.input_ids, (family.image_token, family.video_token)).sum()
    assert (
        encoded.vision_tokens == pads == sum(np.prod(grid) // 4 for kind_grids in grids.values() for grid in kind_grids)
    )


def test_a_template_with_generation_tags_is_parsed_like_any_other():
    """trl saves such templates; only transformers' own Jinja knows the tags."""
    marked = chat_templates.QWEN3.replace(
        "{%- set text", "{%- if message.role == 'tool' -%}{%- continue -%}{%- endif -%}{%- generation -%}{%- set text"
    ).replace("{%- endfor -%}{%- if add", "{%- endgeneration -%}{%- endfor -%}{%- if add")
    assert marked.count("generation -%}") == 2
    assert parse_chat_template(marked) == parse_chat_template(chat_templates.QWEN3)
