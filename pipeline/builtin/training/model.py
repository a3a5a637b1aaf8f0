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
from pipeline.builtin.training.batches import IGNORED, LETTERS, SLOTS, SPANS, Batch
from pipeline.model import hf_models, weights
from pipeline.model.engines.torch import attention
from pipeline.model.engines.torch.vision import layout, pack_layouts, patchify
from pipeline.model.families.base import Family

CLASSES = len(LETTERS)
SOFT = 3  # a number's neighbours on either side are nearly right


class Pupil(nn.Module):
    """A model of the real classes, and two heads for the hints."""

    def __init__(self, folder: Path, family: Family):
        super().__init__()
        hf = hf_models.transformers()
        hf.AttentionInterface.register(attention.NAME, attention.attend)
        kind = weights.config(folder)["model_type"]
        self.model = hf_models.model_class(kind).from_pretrained(folder, attn_implementation="sdpa")
        self.family = family
        self.tower, self.language = self.model.model.visual, self.model.model.language_model
        for module in self.tower.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = attention.NAME
        hidden = self.language.config.hidden_size
        self.near = nn.Linear(hidden, SLOTS * CLASSES + SPANS)
        self.far = nn.Linear(hidden, 3 * CLASSES)
        self.halfway: Tensor
        middle = self.language.layers[self.language.config.num_hidden_layers // 2 - 1]
        middle.register_forward_hook(self.keep)
        flatten_patches_live(self.tower.patch_embed)

    def keep(self, _module: Any, _given: Any, made: Any) -> None:
        self.halfway = made[0] if isinstance(made, tuple) else made

    def look(self, batch: Batch) -> Tensor:
        """[1 + deepstack, rows, cells, hidden]"""
        family, clips = self.family, batch.clips
        t, _, high, wide = clips[0].pixels.shape
        grid = -(-t // family.temporal_patch), high // family.patch, wide // family.patch
        patches = [patchify(torch.from_numpy(clip.pixels), grid, family) for clip in clips]
        layouts = pack_layouts([layout(grid, self.tower)] * len(clips), torch.device("cpu"), flash=False)
        out = self.tower(torch.cat(patches), grid_thw=torch.tensor([grid] * len(clips)), **layouts)
        seen = torch.stack([out.pooler_output, *(getattr(out, "deepstack_features", None) or [])])
        return seen.view(len(seen), len(clips), -1, seen.shape[-1])

    def losses(self, batch: Batch, *, reading: bool) -> dict[str, Tensor]:
        seen = self.look(batch)
        found = hinted(self.near(seen[0]), batch)
        if reading:
            return found
        where = (batch.ids == self.family.image_token) | (batch.ids == self.family.video_token)
        embedded = self.language.embed_tokens(batch.ids)
        embedded = embedded.masked_scatter(where[..., None], seen[0].to(embedded.dtype))
        deeper = {"visual_pos_masks": where, "deepstack_visual_embeds": [d.flatten(0, 1).float() for d in seen[1:]]}
        hidden = self.language(
            inputs_embeds=embedded,
            position_ids=batch.positions,
            attention_mask={"full_attention": None} if len(seen) == 1 else None,
            use_cache=False,
            **(deeper if len(seen) > 1 else {}),
        ).last_hidden_state
        asked = batch.answers
        logits = F.linear(hidden[:, :-1][asked], self.language.embed_tokens.weight)
        target = batch.ids[:, 1:][asked]
        far = self.far(self.halfway[where].view(*batch.far.shape[:2], -1)).view(-1, CLASSES)
        sought = self.far(self.halfway).view(-1, CLASSES)
        if (batch.sought != IGNORED).any():
            found["sought"] = F.cross_entropy(sought, batch.sought.flatten(), ignore_index=IGNORED)
        found["far"] = F.cross_entropy(far, batch.far.flatten(), ignore_index=IGNORED)
        found["right"] = (logits.detach().argmax(-1) == target).float().mean()
        found["answer"] = self.softly(logits, target)
        return found

    def softly(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy in which a number's neighbours are nearly right."""
        near, share = self.neighbours()
        said = F.log_softmax(logits.float(), -1).gather(1, near[target])
        return -(said * share[target]).sum(1).mean()

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """[vocabulary, 2 * SOFT + 1] which tokens are nearly right instead of each, and how much of it they get."""
        if not hasattr(self, "_neighbours"):
            size = self.language.embed_tokens.num_embeddings
            near = torch.arange(size)[:, None].repeat(1, 2 * SOFT + 1)
            share = torch.zeros(size, 2 * SOFT + 1)
            share[:, SOFT] = 1
            bell = torch.exp(-0.5 * (torch.arange(-SOFT, SOFT + 1) / 0.8) ** 2)
            for words in (vocabulary.NUMBERS[10:], vocabulary.MOMENTS):
                line = torch.tensor([self.family.tokenizer.token_to_id(word) for word in words])
                at = torch.arange(len(line))[:, None] + torch.arange(-SOFT, SOFT + 1)
                near[line], share[line] = line[at.clamp(0, len(line) - 1)], bell / bell.sum()
            self._neighbours = near, share
        return self._neighbours


def flatten_patches_live(embed: Any) -> None:
    embed.forward = lambda patches: F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias)


def hinted(said: Tensor, batch: Batch) -> dict[str, Tensor]:
    classes, spans = torch.split(said, [SLOTS * CLASSES, SPANS], -1)
    near = F.cross_entropy(classes.reshape(-1, CLASSES), batch.near.flatten(), ignore_index=IGNORED)
    there = ~batch.spans.isnan()
    return {
        "near": near,
        "spans": F.smooth_l1_loss(spans[there], batch.spans[there], beta=0.1) if there.any() else near * 0,
    }


def smooth_numbers(pupil: Pupil, seed: int) -> None:
    """Numbers begin as waves of their value, so that what is learned of one holds for its neighbours."""
    table = pupil.language.embed_tokens.weight
    maker = torch.Generator().manual_seed(seed)
    for words, longest in ((vocabulary.NUMBERS[10:], 2000.0), (vocabulary.MOMENTS, 200.0)):
        line = torch.tensor([pupil.family.tokenizer.token_to_id(word) for word in words])
        periods = torch.logspace(0.7, torch.tensor(longest).log10().item(), 24)
        angle = 2 * torch.pi * torch.arange(len(line))[:, None] / periods
        waves = torch.cat([angle.cos(), angle.sin()], 1)
        mixed = waves @ torch.randn(waves.shape[1], table.shape[1], generator=maker) / waves.shape[1] ** 0.5
        table.data[line] = 0.05 * mixed + 0.3 * table.data[line]
