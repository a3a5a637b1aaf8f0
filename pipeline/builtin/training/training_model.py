"""The model under training: the real classes with two heads for the auxiliary targets, and the losses.

The vision tower runs as in the engine, packed and with the engine's attention. The rows of a batch have equal grids
and prompts, so the language model needs no padding. Number tokens start as sinusoids of their value, and the loss
counts the neighbours of the right number as nearly right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.builtin.training import tokenizer
from pipeline.builtin.training.batches import (
    CHARACTERS,
    IGNORED_LABEL,
    LABELS_PER_CELL,
    SPAN_VALUES_PER_CELL,
    TrainingBatch,
)
from pipeline.model import family_loader, hf_models
from pipeline.model.engines.torch import attention
from pipeline.model.engines.torch.vision_encoder import VisionConfig, patchify
from pipeline.model.families.base import Family

CLASS_COUNT = len(CHARACTERS)
NEIGHBOUR_REACH = 3  # neighbours on either side of a number that count as nearly right


class TrainingModel(nn.Module):
    """A model of the real classes and two heads for the auxiliary targets."""

    def __init__(self, folder: Path, family: Family):
        super().__init__()
        transformers = hf_models.import_transformers()
        transformers.AttentionInterface.register(attention.ATTENTION_NAME, attention.attend)
        model_type = family_loader.load_config(folder)["model_type"]
        self.model = hf_models.get_model_class(model_type).from_pretrained(folder, attn_implementation="sdpa")
        self.family = family
        architecture = family.architecture
        self.vision_tower = architecture.open_vision_tower(self.model)
        self.tower, self.language = self.vision_tower.module, self.model.get_submodule(architecture.language_model)
        for module in self.tower.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = attention.ATTENTION_NAME
        hidden = self.language.config.hidden_size
        self.near = nn.Linear(hidden, LABELS_PER_CELL * CLASS_COUNT + SPAN_VALUES_PER_CELL)
        self.far = nn.Linear(hidden, 3 * CLASS_COUNT)
        self.middle_output: Tensor
        middle = self.language.layers[self.language.config.num_hidden_layers // 2 - 1]
        middle.register_forward_hook(self.keep_middle_output)

    def keep_middle_output(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.middle_output = output[0] if isinstance(output, tuple) else output

    def encode_clips(self, batch: TrainingBatch) -> Tensor:
        """[1 + deepstack, rows, cells, hidden]"""
        vision_config, clips = VisionConfig.from_family(self.family), batch.clips
        grid = vision_config.compute_grid(clips[0].pixels.shape)
        patches = [patchify(torch.from_numpy(clip.pixels), grid, vision_config) for clip in clips]
        seen = torch.stack(self.vision_tower.encode_patches(torch.cat(patches), [grid] * len(clips), has_flash=False))
        return seen.view(len(seen), len(clips), -1, seen.shape[-1])

    def compute_losses(self, batch: TrainingBatch, *, tower_only: bool) -> dict[str, Tensor]:
        seen = self.encode_clips(batch)
        losses = compute_hint_losses(self.near(seen[0]), batch)
        if tower_only:
            return losses
        is_pad = (batch.token_ids == self.family.image_token) | (batch.token_ids == self.family.video_token)
        embedded = self.language.embed_tokens(batch.token_ids)
        embedded = embedded.masked_scatter(is_pad[..., None], seen[0].to(embedded.dtype))
        deepstack = {"visual_pos_masks": is_pad, "deepstack_visual_embeds": [d.flatten(0, 1).float() for d in seen[1:]]}
        hidden = self.language(
            inputs_embeds=embedded,
            position_ids=batch.positions,
            attention_mask={"full_attention": None, "linear_attention": None} if len(seen) == 1 else None,
            use_cache=False,
            **(deepstack if len(seen) > 1 else {}),
        ).last_hidden_state
        is_answer = batch.answer_mask
        logits = F.linear(hidden[:, :-1][is_answer], self.language.embed_tokens.weight)
        target = batch.token_ids[:, 1:][is_answer]
        far = self.far(self.middle_output[is_pad].view(*batch.far.shape[:2], -1)).view(-1, CLASS_COUNT)
        sought = self.far(self.middle_output).view(-1, CLASS_COUNT)
        if (batch.sought != IGNORED_LABEL).any():
            losses["sought"] = F.cross_entropy(sought, batch.sought.flatten(), ignore_index=IGNORED_LABEL)
        losses["far"] = F.cross_entropy(far, batch.far.flatten(), ignore_index=IGNORED_LABEL)
        losses["right"] = (logits.detach().argmax(-1) == target).float().mean()
        losses["answer"] = self.compute_soft_cross_entropy(logits, target)
        return losses

    def compute_soft_cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy that counts the neighbours of the right number as nearly right."""
        near, share = self.find_neighbours()
        logprobs = F.log_softmax(logits.float(), -1).gather(1, near[target])
        return -(logprobs * share[target]).sum(1).mean()

    def find_neighbours(self) -> tuple[Tensor, Tensor]:
        """The neighbours of each token and their share of the target, two [vocabulary, 2 * NEIGHBOUR_REACH + 1]."""
        if not hasattr(self, "_neighbours"):
            size = self.language.embed_tokens.num_embeddings
            near = torch.arange(size)[:, None].repeat(1, 2 * NEIGHBOUR_REACH + 1)
            share = torch.zeros(size, 2 * NEIGHBOUR_REACH + 1)
            share[:, NEIGHBOUR_REACH] = 1
            bell = torch.exp(-0.5 * (torch.arange(-NEIGHBOUR_REACH, NEIGHBOUR_REACH + 1) / 0.8) ** 2)
            for words in (tokenizer.NUMBERS[10:], tokenizer.SECOND_VALUES):
                ids = torch.tensor([self.family.tokenizer.token_to_id(word) for word in words])
                index = torch.arange(len(ids))[:, None] + torch.arange(-NEIGHBOUR_REACH, NEIGHBOUR_REACH + 1)
                near[ids], share[ids] = ids[index.clamp(0, len(ids) - 1)], bell / bell.sum()
            self._neighbours = near, share
        return self._neighbours


def compute_hint_losses(predictions: Tensor, batch: TrainingBatch) -> dict[str, Tensor]:
    classes, spans = torch.split(predictions, [LABELS_PER_CELL * CLASS_COUNT, SPAN_VALUES_PER_CELL], -1)
    near = F.cross_entropy(classes.reshape(-1, CLASS_COUNT), batch.near.flatten(), ignore_index=IGNORED_LABEL)
    is_filled = ~batch.spans.isnan()
    return {
        "near": near,
        "spans": F.smooth_l1_loss(spans[is_filled], batch.spans[is_filled], beta=0.1) if is_filled.any() else near * 0,
    }


def smooth_number_embeddings(model: TrainingModel, seed: int) -> None:
    """Start number tokens as sinusoids of their value, so that training one number also moves its neighbours."""
    table = model.language.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed)
    for words, longest in ((tokenizer.NUMBERS[10:], 2000.0), (tokenizer.SECOND_VALUES, 200.0)):
        ids = torch.tensor([model.family.tokenizer.token_to_id(word) for word in words])
        periods = torch.logspace(0.7, torch.tensor(longest).log10().item(), 24)
        angle = 2 * torch.pi * torch.arange(len(ids))[:, None] / periods
        waves = torch.cat([angle.cos(), angle.sin()], 1)
        mixed = waves @ torch.randn(waves.shape[1], table.shape[1], generator=generator) / waves.shape[1] ** 0.5
        table.data[ids] = 0.05 * mixed + 0.3 * table.data[ids]


def spread_memory_lengths(model: TrainingModel) -> None:
    """Start the heads of Gated DeltaNet layers with memories of one to a hundred tokens; transformers' are short."""
    for module in model.language.modules():
        if hasattr(module, "A_log"):
            module.A_log.data = torch.linspace(-4.5, 0.0, len(module.A_log))
