"""A file that says what the options of a command say, by the same names."""

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

_NOT_IN_A_FILE = ("config", "check", "help")


def defaults_from(path: Path, command: click.Command) -> dict[str, Any]:
    """The options that a file gives, for click's `default_map`. Raises click.UsageError.

    The names are the options', without the dashes before them; what may be given several times is a list.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not UTF-8, at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise click.UsageError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise click.UsageError(f"{path} is nested too deeply to be read") from None
    options = {
        name.removeprefix("--"): one
        for one in command.params
        if isinstance(one, click.Option) and one.name not in _NOT_IN_A_FILE
        for name in one.opts
        if name.startswith("--")
    }
    found = {}
    for name, value in content.items():
        if name not in options:
            meant = get_close_matches(name, options, 1)
            hint = f"did you mean {meant[0]!r}?" if meant else "portwatch serve --help shows what there is"
            raise click.UsageError(f"{path}: there is no {name!r}; {hint}")
        option = options[name]
        assert option.name
        found[option.name] = _checked(path, name, value, option)
    return found


def _checked(path: Path, name: str, value: Any, option: click.Option) -> Any:
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{path}: {name} is true or false, not {value!r}")
        return value
    several = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not option.multiple:
        raise click.UsageError(f"{path}: {name} is one value, not a list")
    for one in several:
        if isinstance(one, bool) or not isinstance(one, (str, int, float)) or "\0" in str(one):
            raise click.UsageError(f"{path}: {name} cannot be {one!r}")
    texts = [str(one) for one in several]
    return texts if option.multiple else texts[0]
