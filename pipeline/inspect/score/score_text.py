"""Prints a score as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.inspect.score import FieldScore, OutputScore
from pipeline.inspect.score.intervals import Estimate
from pipeline.inspect.score.population import PopulationEstimate
from pipeline.inspect.score.row_marks import RIGHT

MAX_CLASSES = 20
MAX_CONFUSIONS = 5
CLASS_MEASURES = ("F1", "precision", "recall", "AP50", "AP50:95")


def format_score(score: OutputScore) -> Iterator[str]:
    failed = f", {score.failed:,} of them failed" if score.failed else ""
    yield f"{score.output}: {score.rows:,} rows against {score.truth}{failed}"
    if score.unlabelled:
        yield f"{score.unlabelled:,} answered rows have no truth"
    if score.unused:
        yield f"{score.unused:,} truths belong to no row of this question"
    width = max(len("confidence"), *map(len, score.fields))
    yield f"{'field':<{width}}  {'measure':<21} {'value':>8}   95 % interval      rows"
    for path, field in score.fields.items():
        for number, (measure, estimate) in enumerate(sort_measures(field)):
            name = "" if number else path
            yield f"{name:<{width}}  {measure:<21} {format_estimate(estimate)} {field.rows:>9,}"
    yield from format_confidences(score.fields, width)
    for path, field in score.fields.items():
        yield from format_classes(path, field)
        mistakes = [each for each in field.confusion if each[0] != each[1]][:MAX_CONFUSIONS]
        for truth, answer, count in mistakes:
            yield f"{path}: {truth or 'null'} was answered as {answer or 'null'} {count:,} times"
    yield from format_estimates(score.estimates)


def format_confidences(fields: Mapping[str, FieldScore], width: int) -> Iterator[str]:
    known = {path: field.confidence for path, field in fields.items() if field.confidence}
    if known:
        shares = f"{'values':>8} {'right':>7} {'mean':>7}"
        yield f"{'confidence':<{width}}  {shares} {'AUROC':>7}  calibration error, and calibrated"
    for path, each in known.items():
        auroc = f"{'-':>7}" if each.auroc is None else f"{each.auroc:>7.3f}"
        calibrated = "" if each.calibrated_error is None else f"{each.calibrated_error:>14.3f}"
        means = f"{each.right:>7.3f} {each.mean:>7.3f}"
        yield f"{path:<{width}}  {each.values:>8,} {means} {auroc}  {each.calibration_error:.3f}{calibrated}"


def format_estimates(estimates: Mapping[str, Mapping[str, PopulationEstimate]]) -> Iterator[str]:
    if not estimates:
        return
    yield "All answered rows, if those with a truth are a random sample of them (the command sample draws one):"
    names = [f"{path}: {figure}" for path, figures in estimates.items() for figure in figures]
    width = max(map(len, names))
    yield f"{'':<{width}}  {'answers':>8} {'estimate':>8}   {'95 % interval':<17}  sample alone"
    for name, each in zip(names, (each for figures in estimates.values() for each in figures.values()), strict=True):
        alone = format_interval(each.sample)
        yield f"{name:<{width}}  {each.answered:>8.3f} {format_estimate(each.estimate)}  {alone}".rstrip()


def list_score_cells(fields: Mapping[str, FieldScore]) -> Iterator[tuple[str, str, str, str, str]]:
    """Field, measure, value, interval and rows, for a table elsewhere."""
    for path, field in fields.items():
        for measure, estimate in sort_measures(field):
            if estimate is not None:
                yield path, measure, f"{estimate.value:.3f}", format_interval(estimate), f"{field.rows:,}"


def sort_measures(field: FieldScore) -> list[tuple[str, Estimate | None]]:
    return sorted(field.measures.items(), key=lambda each: each[0] != RIGHT)


def format_estimate(estimate: Estimate | None) -> str:
    """
    >>> format_estimate(Estimate(0.5, 0.25, 0.75))
    '   0.500   0.250 to 0.750 '
    """
    if estimate is None:
        return f"{'-':>8}{'':18}"
    return f"{estimate.value:>8.3f}   {format_interval(estimate):<15}"


def format_interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"


def format_classes(path: str, field: FieldScore) -> Iterator[str]:
    if not field.classes:
        return
    shown = sorted(field.classes.items(), key=lambda each: -(each[1]["true"] or 0))[:MAX_CLASSES]
    names = [name for name in CLASS_MEASURES if name in shown[0][1]]
    width = max(len(path), *(len(label) for label, _ in shown))
    widths = {name: max(len(name), 5) + 1 for name in names}
    yield f"{path:<{width}}  {'true':>7} {'answered':>9}" + "".join(f"{name:>{widths[name]}}" for name in names)
    for label, described in shown:
        values = ((described[name], widths[name]) for name in names)
        cells = "".join(f"{'-':>{size}}" if value is None else f"{value:>{size}.3f}" for value, size in values)
        yield f"{label or 'null':<{width}}  {described['true']:>7,.0f} {described['answered']:>9,.0f}{cells}"
    if len(field.classes) > MAX_CLASSES:
        yield f"and {len(field.classes) - MAX_CLASSES:,} more; --json has all"
