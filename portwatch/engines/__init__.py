"""Where events come from: one protocol, several engines, and the choice between them."""

from portwatch.engines.choice import ENGINES, Choice, choose
from portwatch.engines.limits import EngineInfo, Limit
from portwatch.engines.protocol import Engine, Options

__all__ = ["ENGINES", "Choice", "Engine", "EngineInfo", "Limit", "Options", "choose"]
