"""Which answers the events schema doubts."""

from schemas.events import Events


def list_violations(*times: tuple[float, float]) -> list[str]:
    events = [{"what": "x", "start": start, "end": end} for start, end in times]
    return list(Events.model_validate({"events": events}).violations())


def test_events_in_order_have_no_violations() -> None:
    assert list_violations((0, 1), (0.5, 2), (2, 2)) == []


def test_an_event_that_ends_before_it_begins_is_a_violation() -> None:
    assert list_violations((3, 1)) == ["event 1 ends at 1.0 s, before it begins at 3.0 s"]


def test_events_out_of_order_are_a_violation() -> None:
    assert list_violations((3, 4), (1, 2)) == ["event 2 begins at 1.0 s, before event 1 at 3.0 s"]
