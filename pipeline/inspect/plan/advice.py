"""Suggests smaller media where that saves many vision tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.inspect.plan.survey import Survey, SurveyedMedia
from pipeline.job.spec import Job
from pipeline.media.sample import merge_image_options, merge_video_options
from pipeline.model.families.base import Family
from pipeline.types import MediaOptions, Size

TOKEN_BUDGETS = (2560, 1280, 640, 320, 160)  # vision tokens of an image or a frame, to try one after another
MIN_SAVED_SHARE = 0.2  # of all vision tokens
MIN_GAIN = 1.2  # how much more a smaller budget must save than the one suggested before it


@dataclass(frozen=True, slots=True)
class Advice:
    """The field names are keys of `plan --json`."""

    key: str  # of the job file
    value: int
    saves: float  # share of all vision tokens
    changes: float  # share of the media that would be shown smaller


def suggest_settings(survey: Survey, job: Job, family: Family) -> list[Advice]:
    """Settings of the job that would save much, computed by the family for the surveyed sizes."""
    total = count_tokens(survey.clips, {media: media.model_size for media in survey.clips}, family)
    candidates = []
    for key, kind in (("media.max_pixels", "image"), ("media.video.max_pixels", "video")):
        clips = Counter({media: count for media, count in survey.clips.items() if media.kind == kind})
        current = count_tokens(clips, {media: media.model_size for media in clips}, family)
        for budget in TOKEN_BUDGETS:
            max_pixels = budget * (family.patch_size * family.merge_size) ** 2
            sizes = {
                media: min(compute_reduced_size(media, max_pixels, job, family), media.model_size, key=math.prod)
                for media in clips
            }
            saved = current - count_tokens(clips, sizes, family)
            if total and saved / total >= MIN_SAVED_SHARE:
                changed = sum(count for media, count in clips.items() if sizes[media] != media.model_size)
                candidates.append(Advice(key, max_pixels, saved / total, changed / clips.total()))
    return [
        advice
        for advice, previous in zip(candidates, [None, *candidates], strict=False)
        if previous is None or advice.key != previous.key or advice.saves > MIN_GAIN * previous.saves
    ]


def count_tokens(clips: Counter[SurveyedMedia], sizes: Mapping[SurveyedMedia, Size], family: Family) -> int:
    return sum(count * family.count_vision_tokens(sizes[media], media.frame_count) for media, count in clips.items())


def compute_reduced_size(media: SurveyedMedia, max_pixels: int, job: Job, family: Family) -> Size:
    merge_options = merge_image_options if media.kind == "image" else merge_video_options
    options = replace(merge_options(job.media, MediaOptions()), max_pixels=max_pixels, min_pixels=None)
    if media.kind == "image":
        return family.fit_image_size(media.source_size, options)
    return family.fit_video_size(media.source_size, media.frame_count, options)
