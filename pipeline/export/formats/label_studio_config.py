"""Makes a labelling configuration of Label Studio from the fields of a schema: one control for each field.

Boxes and points are labelled on the image, events on the time line of the video. A choice is a choice, a number a
number, and everything else a text area; elements of other lists are JSON. A control has the path of its field as name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from pipeline.truth.compared_fields import ComparedField

FRAME_RATE = 25  # by which times become numbers of frames; the video may have another one
FREE_EVENT = "event"  # the label of events whose own label is free text
PLACE_TAGS = {"boxes": "RectangleLabels", "points": "KeyPointLabels", "events": "TimelineLabels"}
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


@dataclass(frozen=True, slots=True)
class Control:
    name: str  # the path of the field
    field: ComparedField

    @property
    def label_name(self) -> str | None:
        """The field of an event that says in free text what happens."""
        return next((part.name for part in self.field.members if part.kind in ("text", "exact", "class")), None)


def build_controls(root: ComparedField) -> list[Control]:
    return list(_walk_fields(root))


def _walk_fields(compared: ComparedField) -> Iterator[Control]:
    if compared.kind == "object":
        for member in compared.members:
            yield from _walk_fields(member)
    elif compared.kind != "ignore":
        yield Control(compared.path, compared)


def build_config(controls: Sequence[Control], kind: str, classes: Sequence[str], *, has_pages: bool) -> str:
    """The medium with the controls of places, and beside it those of plain values."""
    view = ElementTree.Element("View", {"style": "display: flex; gap: 1em"})
    left = ElementTree.SubElement(view, "View", {"style": "flex: 3; min-width: 0"})
    add_medium(left, kind, has_pages=has_pages)
    for control in controls:
        if control.field.kind in PLACE_TAGS and (control.field.kind == "events") == (kind == "video"):
            add_place_control(left, control, kind, classes)
    if plain_controls := [control for control in controls if control.field.kind not in PLACE_TAGS]:
        right = ElementTree.SubElement(view, "View", {"style": "flex: 2; min-width: 0"})
        for control in plain_controls:
            ElementTree.SubElement(right, "Header", {"value": control.name, "size": "5"})
            add_plain_control(right, control, kind)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def add_medium(view: ElementTree.Element, kind: str, *, has_pages: bool) -> None:
    if kind == "image":
        source = {"valueList": "$images"} if has_pages else {"value": "$image"}
        ElementTree.SubElement(view, "Image", {"name": "image", **source, "zoom": "true", "zoomControl": "true"})
    elif kind == "video":
        ElementTree.SubElement(view, "Video", {"name": "video", "value": "$video", "frameRate": "$fps"})
    else:
        ElementTree.SubElement(view, "Text", {"name": "text", "value": "$id"})


def add_place_control(view: ElementTree.Element, control: Control, kind: str, classes: Sequence[str]) -> None:
    tag = ElementTree.SubElement(view, PLACE_TAGS[control.field.kind], {"name": control.name, "toName": kind})
    labels = [FREE_EVENT] if control.field.kind == "events" else list(classes)
    for number, label in enumerate(labels):
        ElementTree.SubElement(tag, "Label", {"value": label, "background": COLOURS[number % len(COLOURS)]})
    if control.field.kind == "events" and control.label_name:
        attributes = {"name": f"{control.name}.{control.label_name}", "toName": kind, "perRegion": "true"}
        ElementTree.SubElement(view, "TextArea", {**attributes, "editable": "true", "maxSubmissions": "1"})


def add_plain_control(view: ElementTree.Element, control: Control, kind: str) -> None:
    names = {"name": control.name, "toName": kind}
    if control.field.kind == "choice":
        tag = ElementTree.SubElement(view, "Choices", {**names, "choice": "single", "showInline": "true"})
        for value in control.field.choices:
            ElementTree.SubElement(tag, "Choice", {"value": value})
    elif control.field.kind == "number":
        ElementTree.SubElement(view, "Number", names)
    else:
        limit = {} if control.field.kind in ("set", "items") else {"maxSubmissions": "1"}
        ElementTree.SubElement(view, "TextArea", {**names, "editable": "true", **limit})
