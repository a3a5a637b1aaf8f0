"""Formats a plan as lines for a terminal. The text tells exact counts from estimates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from pipeline.inspect.figures import count_by_bin, format_amount, sum_weighted
from pipeline.inspect.plan import JobPlan
from pipeline.inspect.plan.gpus import BANDWIDTH_SHARES, PEAK_SHARES, GpuEstimate
from pipeline.inspect.plan.shard_advice import format_shard_advice
from pipeline.inspect.plan.survey import Survey
from pipeline.model.engines.torch.model_size import ModelSize
from pipeline.run.progress import format_count

BAR_CHARACTERS = " ▏▎▍▌▋▊▉█"
LABEL_WIDTH = 16  # of the words before the figures
BAR_WIDTH, HISTOGRAM_BINS = 32, 10
GIB = 2**30
GPU_TABLE_HEAD = ("GPU", "tokens of cache", "rows at once", "GPU hours", "USD")
ROW_KIND_LABELS = {"picture": "with one picture", "pictures": "with several pictures", "video": "with a video"}
ROW_KIND_LABELS |= {"mixed": "with pictures and video", "text": "of text alone"}


def format_plan(plan: JobPlan) -> Iterator[str]:
    survey = plan.survey
    done = f", {plan.rows - plan.rows_left:,} done before" if plan.rows > plan.rows_left else ""
    yield f"{plan.name}: {format_count(plan.rows, 'row')}{done}, {plan.rows_left:,} to do"
    if not survey.rows:
        yield "nothing is left to plan"
        return
    sample = f"a sample of {survey.rows:,} rows; --all reads every header"
    yield f"headers read: {sample if survey.rows < plan.rows_left else 'all of them'}"
    sections = [
        format_content(plan) if survey.answerable_rows else (),
        format_histogram(survey.vision) if survey.answerable_rows else (),
        format_failures(plan) if survey.failures else (),
        format_gpu_table(plan.model, plan) if plan.model and survey.answerable_rows else (),
        format_shard_advice(plan.shards) if plan.shards else (),
        format_advice(plan) if plan.advice else (),
    ]
    for section in sections:
        for number, line in enumerate(section):
            yield from ("", line) if number == 0 else (line,)


def format_content(plan: JobPlan) -> Iterator[str]:
    survey, scale = plan.survey, plan.rows_per_surveyed_row
    kinds = (f"{count * scale:,.0f} {ROW_KIND_LABELS[kind]}" for kind, count in survey.kinds.most_common())
    yield f"rows            {', '.join(kinds)}"
    for kind, name in (("image", "pictures"), ("video", "videos")):
        if count := survey.media[kind]:
            yield f"{name:<{LABEL_WIDTH}}{count * scale:,.0f}, {format_sizes(survey, kind, count)}"
    if survey.frames:
        yield f"frames          {survey.frames * scale:,.0f}, {survey.frames / survey.media['video']:.0f} a video"
    yield f"chunks          {plan.chunks.removeprefix('chunks ')}"
    if requests := plan.requests:
        counts = f"{requests.puts:,.0f} writes and {requests.gets:,.0f} reads of the output for a million rows"
        yield f"requests        {counts}, {format_amount(requests.cost)} USD at the list prices of S3"
    load, exact = plan.load, scale == 1
    yield f"vision tokens   {load.vision:,.0f}, {format_distribution(survey.vision, exact=exact)}"
    text_tokens = load.prompt - load.vision
    yield f"prompt text     {text_tokens:,.0f} tokens, {format_distribution(survey.text, exact=exact)}"
    if load.copied:
        share = load.copied / load.prompt
        yield f"computed once   {load.copied:,.0f} tokens of prompts, {share:.0%}, in which rows begin alike"
    yield f"answers         {format_answers(plan) if plan.answer_tokens else 'none is written; the prompt is read'}"
    if plan.tokens_are_estimates:
        yield "not known       the model's own tokens, limits and memory: a token is taken as 28*28 pixels or 4 bytes"
    if plan.cost is not None:
        counted = "estimated tokens" if plan.tokens_are_estimates else "tokens as model.weights counts them"
        yield f"cost            {format_amount(plan.cost)} at engine.price, for {counted}"


def format_answers(plan: JobPlan) -> str:
    source = f"as in {plan.answers_known:,} earlier answers" if plan.answers_known else "--answer-tokens to change"
    return (
        f"{plan.load.output:,.0f} tokens, estimated at {plan.answer_tokens:.0f} a row ({source}); "
        f"at most {plan.max_new_tokens:,}"
    )


def format_sizes(survey: Survey, kind: str, count: int) -> str:
    mean = survey.source_pixels[kind] / count / 1e6
    width, height = survey.largest[kind]
    kept_share = survey.model_pixels[kind] / survey.source_pixels[kind]
    return (
        f"{mean:.2f} megapixels on average, {width}x{height} the largest; "
        f"{survey.resized[kind] / count:.0%} resized, to {kept_share:.0%} of the pixels"
    )


def format_distribution(counts: Counter[int], *, exact: bool) -> str:
    """Mean, median and maximum; the mean of a sample with its standard error, doubled."""
    row_count = counts.total()
    mean = sum_weighted(counts) / row_count
    variance = sum(count * (value - mean) ** 2 for value, count in counts.items()) / max(row_count - 1, 1)
    error = 2 * math.sqrt(variance / row_count) / mean if mean else 0.0
    margin = "" if exact or error < 0.005 else f" ± {error:.0%}"
    return f"{mean:,.0f}{margin} a row, median {find_quantile(counts, 0.5):,}, most {max(counts):,}"


def find_quantile(counts: Counter[int], share: float) -> int:
    """
    >>> find_quantile(Counter({1: 5, 9: 4, 100: 1}), 0.9)
    9
    """
    remaining = share * counts.total()
    for value in sorted(counts):
        remaining -= counts[value]
        if remaining <= 0:
            return value
    return max(counts)


def format_histogram(counts: Counter[int]) -> Iterator[str]:
    bins = count_by_bin(counts, HISTOGRAM_BINS)
    highest, number_width = max(count for _, _, count in bins), len(f"{max(counts):,}")
    yield "vision tokens of a row"
    for first, last, count in bins:
        label = f"{first:>{number_width},} to {last:>{number_width},}"
        yield f"  {label}  {format_bar(count / highest)}  {count / counts.total():.0%}"


def format_bar(share: float) -> str:
    eighths = max(round(share * BAR_WIDTH * 8), 1 if share else 0)
    text = BAR_CHARACTERS[8] * (eighths // 8) + (BAR_CHARACTERS[eighths % 8] if eighths % 8 else "")
    return f"{text:<{BAR_WIDTH}}"


def format_failures(plan: JobPlan) -> Iterator[str]:
    failures, scale = plan.survey.failures, plan.rows_per_surveyed_row
    yield f"rows that will fail: {failures.total() * scale:,.0f}, {failures.total() / plan.survey.rows:.1%}"
    for name, count in failures.most_common():
        yield f"  {count * scale:>8,.0f}  {name}: {plan.survey.examples[name].strip().splitlines()[-1]}"


def format_gpu_table(model: ModelSize, plan: JobPlan) -> Iterator[str]:
    parameters = (model.vision_parameters + model.text_parameters) / 1e6
    size = f"{parameters / 1000:.1f} billion" if parameters >= 1000 else f"{parameters:.1f} million"
    state = f" and 2 x {model.state_bytes / 2**20:.0f} MiB of state a row" if model.state_bytes else ""
    yield (
        f"model: {size} parameters, {model.weights_bytes / GIB:.1f} GiB of weights, "
        f"{model.token_bytes / 1024:.0f} KiB of KV cache a token{state}; longest row {plan.load.longest:,} tokens"
    )
    rows = [GPU_TABLE_HEAD, *map(format_gpu_row, plan.offers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(GPU_TABLE_HEAD))]
    for name, *cells in rows:
        aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join(["", f"{name:<{widths[0]}}", *aligned]).rstrip()
    fitting = [offer for offer in plan.offers if offer.gpu_hours is not None]
    if any(not offer.measured for offer in fitting):
        peaks, bandwidths = (f"{least:.0%} to {most:.0%}" for least, most in (PEAK_SHARES, BANDWIDTH_SHARES))
        yield f"  * estimated: prompts at {peaks} of the peak, which published runs reach,"
        yield f"    and answers at {bandwidths} of the bandwidth, which is assumed"
    if any(offer.measured for offer in fitting):
        yield "  without *: from the measured speed of rows like these on that GPU"
    yield "  typical prices on demand; --price for yours"
    if any(offer.gpu_hours is None for offer in plan.offers):
        yield "  does not fit: no room for the longest row beside the weights; try model.quantize=int4 or smaller media"


def format_gpu_row(offer: GpuEstimate) -> tuple[str, ...]:
    name = offer.gpu if offer.gpus == 1 else f"{offer.gpus} x {offer.gpu}"
    if offer.gpu_hours is None or offer.least_gpu_hours is None or offer.cost is None or offer.least_cost is None:
        return name, f"{offer.kv_tokens:,}", "does not fit", "", ""
    hours, cost = format_range(offer.least_gpu_hours, offer.gpu_hours), format_range(offer.least_cost, offer.cost)
    star = "" if offer.measured else "*"
    return name, f"{offer.kv_tokens:,}", f"{offer.rows_at_once:,}", f"{hours}{star}", f"{cost}{star}"


def format_range(least: float, most: float) -> str:
    """
    >>> format_range(1.234, 5.678), format_range(0.001, 0.002), format_range(2.0, 2.0)
    ('1.23 to 5.68', '<0.01', '2.00')
    """
    first, last = format_amount(least), format_amount(most)
    return first if first == last else f"{first} to {last}"


def format_advice(plan: JobPlan) -> Iterator[str]:
    yield "would smaller media do? Small things in them may then be missed"
    for advice in plan.advice:
        noun = "pictures" if advice.key == "media.max_pixels" else "videos"
        effect = f"{advice.saves:.0%} fewer vision tokens; {advice.changes:.0%} of the {noun} would be shown smaller"
        yield f"  --set {advice.key}={advice.value:<9}  {effect}"
