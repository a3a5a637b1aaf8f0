"""A model that learns, and what it got wrong: the real classes, two heads for the hints, and losses.

The vision tower runs as in the engine, packed and through its attention; the rows of a batch are of one grid and one
prompt, so the language model sees a rectangle. Numbers are learned as numbers: they start as waves of their value, and
a neighbour of the right one is nearly right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.builtin.training import vocabulary
from pipeline.builtin.training.batches import (
    CHARACTERS,
    IGNORED_LABEL,
    LABELS_PER_CELL,
    SPAN_VALUES_PER_CELL,
    TrainingBatch,
)
from pipeline.model import family_loader, hf_models
from pipeline.model.engines.torch import attention
from pipeline.model.engines.torch.vision import build_tower_inputs, join_tower_inputs, patchify
from pipeline.model.families.base import Family

CLASS_COUNT = len(CHARACTERS)
NEIGHBOUR_REACH = 3  # a number's neighbours on either side are nearly right


class TrainingModel(nn.Module):
    """A model of the real classes, and two heads for the hints."""

    def __init__(self, folder: Path, family: Family):
        super().__init__()
        hf = hf_models.import_transformers()
        hf.AttentionInterface.register(attention.ATTENTION_NAME, attention.attend)
        kind = family_loader.load_config(folder)["model_type"]
        self.model = hf_models.get_model_class(kind).from_pretrained(folder, attn_implementation="sdpa")
        self.family = family
        self.tower, self.language = self.model.model.visual, self.model.model.language_model
        for module in self.tower.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = attention.ATTENTION_NAME
        hidden = self.language.config.hidden_size
        self.near = nn.Linear(hidden, LABELS_PER_CELL * CLASS_COUNT + SPAN_VALUES_PER_CELL)
        self.far = nn.Linear(hidden, 3 * CLASS_COUNT)
        self.middle_output: Tensor
        middle = self.language.layers[self.language.config.num_hidden_layers // 2 - 1]
        middle.register_forward_hook(self.keep_middle_output)
        use_linear_patch_embedding(self.tower.patch_embed)

    def keep_middle_output(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.middle_output = output[0] if isinstance(output, tuple) else output

    def encode_clips(self, batch: TrainingBatch) -> Tensor:
        """[1 + deepstack, rows, cells, hidden]"""
        family, clips = self.family, batch.clips
        t, _, high, wide = clips[0].pixels.shape
        grid = -(-t // family.temporal_patch_size), high // family.patch_size, wide // family.patch_size
        patches = [patchify(torch.from_numpy(clip.pixels), grid, family) for clip in clips]
        layouts = join_tower_inputs(
            [build_tower_inputs(grid, self.tower)] * len(clips), torch.device("cpu"), has_flash=False
        )
        out = self.tower(torch.cat(patches), grid_thw=torch.tensor([grid] * len(clips)), **layouts)
        seen = torch.stack([out.pooler_output, *(getattr(out, "deepstack_features", None) or [])])
        return seen.view(len(seen), len(clips), -1, seen.shape[-1])

    def compute_losses(self, batch: TrainingBatch, *, tower_only: bool) -> dict[str, Tensor]:
        seen = self.encode_clips(batch)
        found = compute_hint_losses(self.near(seen[0]), batch)
        if tower_only:
            return found
        where = (batch.token_ids == self.family.image_token) | (batch.token_ids == self.family.video_token)
        embedded = self.language.embed_tokens(batch.token_ids)
        embedded = embedded.masked_scatter(where[..., None], seen[0].to(embedded.dtype))
        deeper = {"visual_pos_masks": where, "deepstack_visual_embeds": [d.flatten(0, 1).float() for d in seen[1:]]}
        hidden = self.language(
            inputs_embeds=embedded,
            position_ids=batch.positions,
            attention_mask={"full_attention": None} if len(seen) == 1 else None,
            use_cache=False,
            **(deeper if len(seen) > 1 else {}),
        ).last_hidden_state
        asked = batch.answer_mask
        logits = F.linear(hidden[:, :-1][asked], self.language.embed_tokens.weight)
        target = batch.token_ids[:, 1:][asked]
        far = self.far(self.middle_output[where].view(*batch.far.shape[:2], -1)).view(-1, CLASS_COUNT)
        sought = self.far(self.middle_output).view(-1, CLASS_COUNT)
        if (batch.sought != IGNORED_LABEL).any():
            found["sought"] = F.cross_entropy(sought, batch.sought.flatten(), ignore_index=IGNORED_LABEL)
        found["far"] = F.cross_entropy(far, batch.far.flatten(), ignore_index=IGNORED_LABEL)
        found["right"] = (logits.detach().argmax(-1) == target).float().mean()
        found["answer"] = self.compute_soft_cross_entropy(logits, target)
        return found

    def compute_soft_cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy in which a number's neighbours are nearly right."""
        near, share = self.find_neighbours()
        said = F.log_softmax(logits.float(), -1).gather(1, near[target])
        return -(said * share[target]).sum(1).mean()

    def find_neighbours(self) -> tuple[Tensor, Tensor]:
        """[vocabulary, 2 * SOFT + 1] which tokens are nearly right instead of each, and how much of it they get."""
        if not hasattr(self, "_neighbours"):
            size = self.language.embed_tokens.num_embeddings
            near = torch.arange(size)[:, None].repeat(1, 2 * NEIGHBOUR_REACH + 1)
            share = torch.zeros(size, 2 * NEIGHBOUR_REACH + 1)
            share[:, NEIGHBOUR_REACH] = 1
            bell = torch.exp(-0.5 * (torch.arange(-NEIGHBOUR_REACH, NEIGHBOUR_REACH + 1) / 0.8) ** 2)
            for words in (vocabulary.NUMBERS[10:], vocabulary.SECOND_VALUES):
                line = torch.tensor([self.family.tokenizer.token_to_id(word) for word in words])
                at = torch.arange(len(line))[:, None] + torch.arange(-NEIGHBOUR_REACH, NEIGHBOUR_REACH + 1)
                near[line], share[line] = line[at.clamp(0, len(line) - 1)], bell / bell.sum()
            self._neighbours = near, share
        return self._neighbours


def use_linear_patch_embedding(patch_embed: Any) -> None:
    patch_embed.forward = lambda patches: F.linear(patches, patch_embed.proj.weight.flatten(1), patch_embed.proj.bias)


def compute_hint_losses(predictions: Tensor, batch: TrainingBatch) -> dict[str, Tensor]:
    classes, spans = torch.split(predictions, [LABELS_PER_CELL * CLASS_COUNT, SPAN_VALUES_PER_CELL], -1)
    near = F.cross_entropy(classes.reshape(-1, CLASS_COUNT), batch.near.flatten(), ignore_index=IGNORED_LABEL)
    there = ~batch.spans.isnan()
    return {
        "near": near,
        "spans": F.smooth_l1_loss(spans[there], batch.spans[there], beta=0.1) if there.any() else near * 0,
    }


def smooth_number_embeddings(model: TrainingModel, seed: int) -> None:
    """Numbers begin as waves of their value, so that what is learned of one holds for its neighbours."""
    table = model.language.embed_tokens.weight
    maker = torch.Generator().manual_seed(seed)
    for words, longest in ((vocabulary.NUMBERS[10:], 2000.0), (vocabulary.SECOND_VALUES, 200.0)):
        line = torch.tensor([model.family.tokenizer.token_to_id(word) for word in words])
        periods = torch.logspace(0.7, torch.tensor(longest).log10().item(), 24)
        angle = 2 * torch.pi * torch.arange(len(line))[:, None] / periods
        waves = torch.cat([angle.cos(), angle.sin()], 1)
        mixed = waves @ torch.randn(waves.shape[1], table.shape[1], generator=maker) / waves.shape[1] ** 0.5
        table.data[line] = 0.05 * mixed + 0.3 * table.data[line]
