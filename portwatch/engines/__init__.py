"""The engines, which produce records about ports. This package exports their protocol and their choice.

The module `portwatch.engines.doctor` is not exported here, because it imports every engine. Import it directly.
"""

from portwatch.engines.choice import ENGINES, Choice, choose
from portwatch.engines.core.hooks import HOOK_SETS
from portwatch.engines.limits import FAILURES, OTHER_OWNERS, EngineInfo, Limit
from portwatch.engines.protocol import Engine, Options

__all__ = [
    "ENGINES",
    "FAILURES",
    "HOOK_SETS",
    "OTHER_OWNERS",
    "Choice",
    "Engine",
    "EngineInfo",
    "Limit",
    "Options",
    "choose",
]
