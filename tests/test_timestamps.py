"""Converting times to ISO 8601 and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portwatch.timestamps import iso_time, parse_iso_time


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (1_795_238_306_586_493_133, "2026-11-21T05:18:26.586493133Z"),
        (1_795_238_305_540_000_000, "2026-11-21T05:18:25.54Z"),
        (1_795_238_305_000_000_000, "2026-11-21T05:18:25Z"),
        (None, None),
    ],
)
def test_iso_time_has_nanoseconds_without_trailing_zeros(nanoseconds, text):
    assert iso_time(nanoseconds) == text


@given(st.none() | st.integers(0, 2**63 - 1))
def test_parse_iso_time_is_the_inverse_of_iso_time(nanoseconds):
    assert parse_iso_time(iso_time(nanoseconds)) == nanoseconds
