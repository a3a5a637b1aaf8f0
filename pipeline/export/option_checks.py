"""Which options a format can follow, and what becomes of those that are not given."""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import JobError
from pipeline.export.base import Exporter, ExportOptions
from pipeline.registry import EXPORTERS, load_registered


def settle_options(exporter_type: type[Exporter], format_name: str, options: ExportOptions) -> ExportOptions:
    """The options with the format's default for media. Refuse those that the format cannot follow."""
    given = {"--partition-by": options.partition_by, "--split": options.splits, "--media": options.media}
    given["--push"] = options.push
    for name in given:
        if given[name] and not list_followed_options(exporter_type)[name]:
            able = [
                other for other in EXPORTERS if list_followed_options(load_registered(EXPORTERS, other, "--to"))[name]
            ]
            raise JobError(f"{name}: the format {format_name} cannot follow it; {', '.join(able) or 'no format'} can")
    choices = exporter_type.media_choices
    if options.media and options.media not in choices:
        raise JobError(f"--media {options.media}: the format {format_name} knows {', '.join(choices)}")
    return replace(options, media=options.media or next(iter(choices), None))


def list_followed_options(exporter_type: type[Exporter]) -> dict[str, object]:
    return {
        "--partition-by": exporter_type.can_partition,
        "--split": exporter_type.can_split,
        "--media": exporter_type.media_choices,
        "--push": getattr(exporter_type, "can_push", False),
    }
