"""The running kernel's release, for what neither BTF nor trying tells."""

import os
import re

RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
"""Such as (6, 1)."""
