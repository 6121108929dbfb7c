"""The systemd unit: its commands must be valid, and systemd-analyze must accept it."""

import shlex
import shutil
import subprocess
import sys

import click
import pytest
from support import ROOT

from portwatch.cli.main import portwatch

UNIT = ROOT / "deploy/systemd/portwatch.service"


def commands():
    """Return the argument lists of the unit's ExecStart and ExecStartPre lines."""
    lines = [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith("ExecStart")]
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("line", commands(), ids=shlex.join)
def test_the_commands_of_the_unit_are_valid(line, tmp_path):
    config = tmp_path / "portwatch.toml"
    config.write_text("")
    _, name, *arguments = [part.replace("/etc/portwatch.toml", str(config)) for part in line]
    command = portwatch.get_command(click.Context(portwatch), name)
    command.make_context(name, arguments)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (part of systemd)")
def test_systemd_analyze_accepts_the_unit(tmp_path):
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/portwatch", sys.executable))
    result = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (result.returncode, complaints) == (0, [])
