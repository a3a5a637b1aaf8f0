"""A Plan -> lines for a terminal. What is counted and what is only reckoned are told apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.inspect.plan import JobPlan
from pipeline.inspect.plan.survey import Survey

BAR_CHARACTERS = " ▏▎▍▌▋▊▉█"
BAR_WIDTH, HISTOGRAM_BINS = 32, 10
GIB = 2**30
ROW_KIND_LABELS = {"picture": "with one picture", "pictures": "with several pictures", "video": "with a video"}
ROW_KIND_LABELS |= {"mixed": "with pictures and video", "text": "of text alone"}


def format_plan(plan: JobPlan) -> Iterator[str]:
    seen = plan.survey
    before = f", {plan.rows - plan.rows_left:,} done before" if plan.rows > plan.rows_left else ""
    yield f"{plan.name}: {plan.rows:,} rows{before}, {plan.rows_left:,} to do"
    if not seen.rows:
        yield "nothing is left to plan"
        return
    part = f"a sample of {seen.rows:,} rows; --all looks at every one" if seen.rows < plan.rows_left else "all of them"
    yield f"headers read: {part}"
    if seen.answerable_rows:
        yield ""
        yield from format_content(plan)
        yield ""
        yield from format_histogram(seen.vision)
    if seen.failures:
        yield ""
        yield from format_failures(plan)
    if plan.model and seen.answerable_rows:
        yield ""
        yield from format_gpu_table(plan)
    if plan.advice:
        yield ""
        yield "less would do?"
        for each in plan.advice:
            what = "pictures" if each.key == "media.max_pixels" else "videos"
            share = f"{each.changes:.0%} of the {what} would be shown smaller"
            yield f"  --set {each.key}={each.value:<9}  {each.saves:.0%} fewer vision tokens; {share}"


def format_content(plan: JobPlan) -> Iterator[str]:
    seen, scale = plan.survey, plan.rows_per_surveyed_row
    yield "rows            " + ", ".join(
        f"{count * scale:,.0f} {ROW_KIND_LABELS[kind]}" for kind, count in seen.kinds.most_common()
    )
    for kind, name in (("image", "pictures"), ("video", "videos")):
        if count := seen.media[kind]:
            yield f"{name:<16}{count * scale:,.0f}, {format_sizes(seen, kind, count)}"
    if seen.frames:
        yield f"frames          {seen.frames * scale:,.0f}, {seen.frames / seen.media['video']:.0f} a video"
    yield f"vision tokens   {plan.load.vision:,.0f}, {format_distribution(seen.vision, exact=scale == 1)}"
    yield f"prompt text     {plan.load.prompt - plan.load.vision:,.0f} tokens, {format_distribution(seen.text, exact=scale == 1)}"
    why = f"as in {plan.answers_known:,} answers given before" if plan.answers_known else "--answer-tokens to change"
    yield (
        f"answers         {plan.load.output:,.0f} tokens, reckoned at {plan.answer_tokens:.0f} a row ({why}); "
        f"at most {plan.max_new_tokens:,}"
    )
    if plan.cost is not None:
        yield f"cost            {format_amount(plan.cost)} at engine.price, for tokens as model.weights counts them"


def format_sizes(seen: Survey, kind: str, count: int) -> str:
    mean = seen.source_pixels[kind] / count / 1e6
    width, height = seen.largest[kind]
    kept = seen.model_pixels[kind] / seen.source_pixels[kind]
    return (
        f"{mean:.2f} megapixels on average, {width}x{height} the largest; "
        f"{seen.resized[kind] / count:.0%} resized, to {kept:.0%} of the pixels"
    )


def format_distribution(counts: Counter[int], *, exact: bool) -> str:
    """Mean with what a sample leaves open, median, longest."""
    rows = counts.total()
    if not rows:
        return "no row to count"
    mean = sum(value * count for value, count in counts.items()) / rows
    variance = sum(count * (value - mean) ** 2 for value, count in counts.items()) / max(rows - 1, 1)
    error = 2 * math.sqrt(variance / rows) / mean if mean else 0.0
    near = "" if exact or error < 0.005 else f" ± {error:.0%}"
    return f"{mean:,.0f}{near} a row, median {find_quantile(counts, 0.5):,}, most {max(counts):,}"


def find_quantile(counts: Counter[int], share: float) -> int:
    """
    >>> quantile(Counter({1: 5, 9: 4, 100: 1}), 0.9)
    9
    """
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)


def format_histogram(counts: Counter[int]) -> Iterator[str]:
    """Rows by vision tokens, as bars."""
    if not counts:
        return
    bins = count_by_bin(counts, HISTOGRAM_BINS)
    most, widest = max(count for _, _, count in bins), len(f"{max(counts):,}")
    yield "vision tokens of a row"
    for first, last, count in bins:
        share = count / counts.total()
        yield f"  {first:>{widest},} to {last:>{widest},}  {format_bar(count / most)}  {share:.0%}"


def count_by_bin(counts: Counter[int], bin_count: int) -> list[tuple[int, int, int]]:
    """(first, last, how many) in equal steps between the least and the most.

    >>> binned(Counter({1: 2, 4: 1, 5: 1}), 2)
    [(1, 3, 2), (4, 5, 2)]
    """
    low, high = min(counts), max(counts)
    step = math.ceil((high - low + 1) / bin_count)
    firsts = range(low, high + 1, step)
    return [(at, min(at + step - 1, high), sum(counts[n] for n in range(at, at + step))) for at in firsts]


def format_bar(share: float) -> str:
    eighths = max(round(share * BAR_WIDTH * 8), 1 if share else 0)
    text = BAR_CHARACTERS[8] * (eighths // 8) + (BAR_CHARACTERS[eighths % 8] if eighths % 8 else "")
    return f"{text:<{BAR_WIDTH}}"


def format_failures(plan: JobPlan) -> Iterator[str]:
    seen = plan.survey
    share = seen.failures.total() / seen.rows
    yield f"rows that will fail: {seen.failures.total() * plan.rows_per_surveyed_row:,.0f}, {share:.1%}"
    for name, count in seen.failures.most_common():
        yield f"  {count * plan.rows_per_surveyed_row:>8,.0f}  {name}: {seen.examples[name].strip().splitlines()[-1]}"


def format_gpu_table(plan: JobPlan) -> Iterator[str]:
    assert plan.model
    parameters = (plan.model.vision_parameters + plan.model.text_parameters) / 1e6
    size = f"{parameters / 1000:.1f} billion" if parameters >= 1000 else f"{parameters:.1f} million"
    yield (
        f"model: {size} parameters, {plan.model.weights_bytes / GIB:.1f} GiB of weights, "
        f"{plan.model.token_bytes / 1024:.0f} KiB of cache a token; longest row {plan.load.longest:,} tokens"
    )
    head = ("GPU", "tokens of cache", "rows at once", "GPU hours", "USD")
    rows: list[Sequence[str]] = [head]
    for each in plan.offers:
        name = each.gpu if each.gpus == 1 else f"{each.gpus} x {each.gpu}"
        if each.gpu_hours is None or each.cost is None:
            rows.append((name, f"{each.kv_tokens:,}", "does not fit", "", ""))
        else:
            star = "" if each.measured else "*"
            rows.append(
                (
                    name,
                    f"{each.kv_tokens:,}",
                    f"{each.rows_at_once:,}",
                    f"{format_amount(each.gpu_hours)}{star}",
                    f"{format_amount(each.cost)}{star}",
                )
            )
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        yield "  " + "  ".join(cells).rstrip()
    yield "  * not measured: a roofline at half the peak and 60 % of the bandwidth; typical prices (--price for yours)"
    if any(each.gpu_hours is None for each in plan.offers):
        yield "  does not fit: no room for the longest row beside the weights; try model.quantize=int4 or smaller media"


def format_amount(value: float) -> str:
    """
    >>> amount(0.00012), amount(0.123), amount(12.34), amount(1234.5)
    ('<0.01', '0.12', '12.3', '1,234')
    """
    return (
        "<0.01"
        if value < 0.01
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:,.0f}"
    )
