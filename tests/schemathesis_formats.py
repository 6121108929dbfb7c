"""What the formats mean that our description of the API names; loaded by schemathesis itself."""

from datetime import datetime

import schemathesis
from hypothesis import strategies as st

MIN, MAX = datetime(1971, 1, 1), datetime(2200, 1, 1)  # the zone is written behind them
_NUMBERS = st.integers(0, 9_999).map(str)
_PORTS = st.integers(1, 65_535)

schemathesis.openapi.format(
    "port-range", _PORTS.map(str) | st.tuples(_PORTS, _PORTS).map(lambda ends: f"{min(ends)}-{max(ends)}")
)
schemathesis.openapi.format(
    "moment",
    st.builds("".join, st.tuples(_NUMBERS, st.sampled_from("smhd")))
    | st.datetimes(MIN, MAX).map(lambda when: when.isoformat() + "Z"),
)
