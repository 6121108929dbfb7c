"""Generators for the formats that openapi.json names. schemathesis loads them (SCHEMATHESIS_HOOKS)."""

from datetime import datetime

import schemathesis
from hypothesis import strategies as st

MIN, MAX = datetime(1971, 1, 1), datetime(2200, 1, 1)  # without a zone: it is appended below
_NUMBERS = st.integers(0, 9_999).map(str)
_PORTS = st.integers(1, 65_535)

schemathesis.openapi.format(
    "port-range", _PORTS.map(str) | st.tuples(_PORTS, _PORTS).map(lambda pair: f"{min(pair)}-{max(pair)}")
)
schemathesis.openapi.format(
    "moment",
    st.builds("".join, st.tuples(_NUMBERS, st.sampled_from("smhd")))
    | st.datetimes(MIN, MAX).map(lambda parse_time: parse_time.isoformat() + "Z"),
)
