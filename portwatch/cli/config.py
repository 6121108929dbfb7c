"""Read the options of a command from a TOML file."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_COMMAND_LINE_ONLY = ("config", "check", "help")


def read_defaults(path: Path, command: click.Command) -> dict[str, Any]:
    """Return the options in a file as a `default_map` for click. Raise click.UsageError if the file is invalid.

    Options have the same names as on the command line, without the leading dashes. An option that can be
    repeated takes a list.
    """
    content = _read_toml(path)
    options = {
        name.removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in _COMMAND_LINE_ONLY
        for name in option.opts
        if name.startswith("--")
    }
    defaults = {}
    for name, value in content.items():
        if name not in options:
            similar = get_close_matches(name, options, 1)
            hint = f"did you mean {similar[0]!r}?" if similar else "run portwatch serve --help for the options"
            raise click.UsageError(f"{path}: unknown option {name!r}; {hint}")
        option = options[name]
        assert option.name
        defaults[option.name] = _checked_value(path, name, value, option)
    return defaults


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not valid UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise click.UsageError(f"{path} is nested too deeply to be read") from None
    return content


def _checked_value(path: Path, name: str, value: Any, option: click.Option) -> Any:
    """Return the value as click expects it: a bool for a flag, otherwise a string or a list of strings."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{path}: {name} must be true or false, not {value!r}")
        return value
    if isinstance(value, list) and not option.multiple:
        raise click.UsageError(f"{path}: {name} takes one value, not a list")
    values = value if isinstance(value, list) else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, (str, int, float)) or "\0" in str(item):
            raise click.UsageError(f"{path}: {name} cannot be {item!r}")
    texts = [str(item) for item in values]
    return texts if option.multiple else texts[0]
