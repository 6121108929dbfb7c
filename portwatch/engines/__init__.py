"""Where records come from: one protocol, several engines, and the choice between them.

`portwatch.engines.doctor` is not re-exported, because it imports every engine.
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
