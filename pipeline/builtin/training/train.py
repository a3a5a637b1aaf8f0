"""The recipe of the built-in models: python -m pipeline.builtin.training.train NAME [--pictures N] [--out FOLDER]

Scenes are drawn on demand, none twice. A model that reads pages first trains its tower alone, on the characters in
each cell, because the language loss alone does not get it started. Shapes and their sides need the same help, but
less of it. The auxiliary losses decay with the learning rate and are dropped with their heads. A stopped run goes on
from its last checkpoint when it is started again with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from pipeline.builtin import random_checkpoint
from pipeline.builtin.training import tokenizer
from pipeline.builtin.training.batches import TrainingBatch, TrainingExample, group_batches, stream_examples
from pipeline.builtin.training.training_model import TrainingModel, smooth_number_embeddings, spread_memory_lengths
from pipeline.model import family_loader
from pipeline.model.families.base import Family

LOG_INTERVAL = 50  # batches between lines of the log
SAVE_INTERVAL_S = 120.0


@dataclass(frozen=True, slots=True)
class Recipe:
    model_type: str
    task_shares: dict[str, float]  # how often each task comes
    pictures: int
    max_pixels: int
    tower_only_pictures: int = 0  # at the start, without the language model
    cells_per_batch: int = 1200
    learning_rate: float = 2e-3
    seed: int = 1
    text_config: dict[str, Any] = field(default_factory=dict)
    vision_config: dict[str, Any] = field(default_factory=dict)


TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20.0, "mrope_section": [4, 6, 6]},
}
VISION_CONFIG: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "out_hidden_size": 128,
    "depth": 4,
    "num_heads": 3,
}
VISION_CONFIG |= {"initializer_range": 0.05}
WINDOW_CONFIG = {"fullatt_block_indexes": [1, 3]}
QWEN3_TEXT_CONFIG: dict[str, Any] = {"head_dim": 32}
QWEN3_TEXT_CONFIG |= {
    "rope_parameters": TEXT_CONFIG["rope_parameters"] | {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
}
QWEN3_VISION_CONFIG = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [1]}
HYBRID_TEXT_CONFIG: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "head_dim": 64,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
HYBRID_TEXT_CONFIG |= {"rope_parameters": QWEN3_TEXT_CONFIG["rope_parameters"] | {"partial_rotary_factor": 0.5}}
HYBRID_VISION_CONFIG = {"patch_size": 16, "num_position_embeddings": 64}
SHAPE_TASKS = {"caption": 1.0, "detect": 2.0, "video": 3.0}
RECIPES = {
    "tiny": Recipe("qwen2_5_vl", SHAPE_TASKS, 160_000, 36 * 28 * 28, vision_config=WINDOW_CONFIG),
    "tiny-invoice": Recipe(
        "qwen2_5_vl",
        {"invoice": 1},
        40_000,
        80 * 28 * 28,
        tower_only_pictures=6_000,
        seed=2,
        vision_config=WINDOW_CONFIG,
    ),
    "tiny-qwen3": Recipe(
        "qwen3_vl", SHAPE_TASKS, 120_000, 36 * 32 * 32, text_config=QWEN3_TEXT_CONFIG, vision_config=QWEN3_VISION_CONFIG
    ),
    "tiny-qwen3_5": Recipe(
        "qwen3_5",
        SHAPE_TASKS,
        120_000,
        36 * 32 * 32,
        text_config=HYBRID_TEXT_CONFIG,
        vision_config=HYBRID_VISION_CONFIG,
    ),
}


def build_optimizers(model: TrainingModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices, AdamW for the rest."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ("layers" in n or "blocks" in n or "mlp" in n)]
    inner_ids = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in inner_ids]
    return [
        torch.optim.Muon(inner, lr=learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw", ns_steps=4),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def mix_examples(recipe: Recipe, family: Family, next_scenes: dict[str, int]) -> Iterator[TrainingExample]:
    """Examples of all tasks in the proportions of the recipe."""
    questions = tokenizer.load_questions()
    streams = {
        task: stream_examples("train", task, family, questions[task], first_scene=next_scenes[task])
        for task in recipe.task_shares
    }
    owed = dict.fromkeys(recipe.task_shares, 0.0)
    while True:
        for task, share in recipe.task_shares.items():
            owed[task] += share
            while owed[task] >= 1:
                owed[task] -= 1
                next_scenes[task] += 1
                yield next(streams[task])


@dataclass
class TrainingRun:
    """The state of a training run: everything that a checkpoint must hold."""

    folder: Path
    recipe: Recipe
    model: TrainingModel
    optimizers: list[torch.optim.Optimizer]
    pictures: int = 0
    seconds: float = 0.0
    next_scenes: dict[str, int] = field(default_factory=dict)  # by task

    def save(self) -> None:
        state = {"pictures": self.pictures, "seconds": self.seconds, "start": self.next_scenes}
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({"pupil": self.model.state_dict(), "tools": optimizers, "state": state}, self.folder / "state.part")
        (self.folder / "state.part").replace(self.folder / "state.pt")

    def resume(self) -> None:
        """Load the last checkpoint, if there is one."""
        self.next_scenes = dict.fromkeys(self.recipe.task_shares, 0)
        if (self.folder / "state.pt").exists():
            saved = torch.load(self.folder / "state.pt", weights_only=True)
            self.model.load_state_dict(saved["pupil"])
            for optimizer, state in zip(self.optimizers, saved["tools"], strict=True):
                optimizer.load_state_dict(state)
            self.pictures, self.seconds, self.next_scenes = (
                saved["state"][key] for key in ("pictures", "seconds", "start")
            )

    def export(self) -> None:
        """Save what a user loads: half precision, no heads, no optimizer. Training cannot go on afterwards."""
        self.model.model.half().save_pretrained(self.folder / "model")

    def step(self, batch: TrainingBatch, warmup: float) -> dict[str, float]:
        """Train on one batch. The learning rate and the auxiliary losses decay over the last third."""
        decay = max(0.01, min(1.0, 3 * (1 - self.pictures / self.recipe.pictures)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * warmup * decay
        losses = self.model.compute_losses(batch, tower_only=self.pictures < self.recipe.tower_only_pictures)
        weighted = [losses[name] * (1.0 if name == "answer" else 0.5 * decay) for name in losses if name != "right"]
        self.model.zero_grad(set_to_none=True)
        torch.stack(weighted).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.pictures += len(batch.clips)
        return {name: value.item() for name, value in losses.items()}


def train_model(recipe: Recipe, folder: Path, *, minutes: float) -> None:
    """Train until the recipe or the time ends; save a checkpoint every two minutes."""
    torch.manual_seed(recipe.seed)
    family = family_loader.load_family(write_initial_checkpoint(recipe, folder / "model"))
    model = TrainingModel(folder / "model", family)
    smooth_number_embeddings(model, recipe.seed)
    spread_memory_lengths(model)
    run = TrainingRun(folder, recipe, model, build_optimizers(model, recipe.learning_rate))
    run.resume()
    started = logged = saved = time.monotonic()
    losses: list[dict[str, float]] = []
    for count, batch in enumerate(
        group_batches(mix_examples(recipe, family, run.next_scenes), recipe.cells_per_batch), 1
    ):
        losses.append(run.step(batch, min(1.0, count / 100)))
        now = time.monotonic()
        if count % LOG_INTERVAL == 0:
            run.seconds += now - logged
            logged = now
            append_curve(folder / "curve.jsonl", run, losses)
            losses = []
        if now - saved > SAVE_INTERVAL_S:
            run.save()
            saved = now
        if run.pictures >= recipe.pictures or now - started > minutes * 60:
            break
    run.save()
    run.export()


def append_curve(curve: Path, training_run: TrainingRun, losses: Sequence[dict[str, float]]) -> None:
    means = {name: fmean(line[name] for line in losses if name in line) for name in losses[-1]}
    progress = {"pictures": training_run.pictures, "seconds": round(training_run.seconds)}
    with curve.open("a", encoding="utf-8") as file:
        file.write(json.dumps(progress | {name: round(mean, 4) for name, mean in means.items()}) + "\n")


def write_initial_checkpoint(recipe: Recipe, folder: Path) -> Path:
    """Write random weights in the shape of the recipe, with its pixel budget."""
    if (folder / "config.json").exists():
        return folder
    random_checkpoint.write_random_checkpoint(
        folder,
        recipe.model_type,
        vocabulary=tokenizer.build_tokenizer(),
        seed=recipe.seed,
        text_config=TEXT_CONFIG | recipe.text_config,
        vision_config=VISION_CONFIG | recipe.vision_config,
        tie_word_embeddings=True,
    )
    for name, change in (
        ("preprocessor_config.json", {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": recipe.max_pixels}}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("generation_config.json", {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
    ):
        content = json.loads((folder / name).read_text(encoding="utf-8")) | change
        random_checkpoint.write_json(folder / name, {key: value for key, value in content.items() if value is not None})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.builtin.training.train", description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path("out/tiny"))
    parser.add_argument("--pictures", type=int, help="train on this many pictures instead of the recipe's")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after this time; the same command goes on later"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = RECIPES[options.name]
    if options.pictures:
        recipe = replace(recipe, pictures=options.pictures)
    train_model(recipe, options.out / options.name, minutes=options.minutes)


if __name__ == "__main__":
    main()
