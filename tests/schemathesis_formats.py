"""What the formats mean that our description of the API names; loaded by schemathesis itself."""

import schemathesis
from hypothesis import strategies as st

_PORTS = st.integers(1, 65_535)

schemathesis.openapi.format(
    "port-range", _PORTS.map(str) | st.tuples(_PORTS, _PORTS).map(lambda ends: f"{min(ends)}-{max(ends)}")
)
