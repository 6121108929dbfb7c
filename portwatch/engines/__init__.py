"""The engines, which are the sources of records: their common protocol, and the choice between them.

Import `portwatch.engines.doctor` itself where it is needed: it is not re-exported here, because it imports
every engine.
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
