"""A full run fails where a test is skipped that could have run."""

from tests.expected_skips import EXPECTED_SKIPS, find_unexpected_skips


def test_a_reason_that_is_not_expected_is_found():
    assert find_unexpected_skips(["no GPU", "no Chromium"]) == ["1 tests skipped, 0 expected: no Chromium"]


def test_one_more_skip_for_an_expected_reason_is_found():
    count = EXPECTED_SKIPS["no GPU"]
    assert find_unexpected_skips(["no GPU"] * count) == []
    assert find_unexpected_skips(["no GPU"] * (count + 1)) == [f"{count + 1} tests skipped, {count} expected: no GPU"]
