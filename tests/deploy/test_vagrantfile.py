"""The Vagrantfile is Ruby that asks for what is there. It needs a hypervisor to be started, Ruby to be read."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT


@pytest.fixture(scope="module")
def asked():
    """What the Vagrantfile asks for: [name, arguments, options]."""
    if not shutil.which("ruby"):
        pytest.skip("needs Ruby (apt-get install ruby), in which a Vagrantfile is written")
    command = ["ruby", "-w", ROOT / "tests" / "vm" / "record_vagrantfile.rb", ROOT / "Vagrantfile"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_project_is_where_it_is_provisioned_from(asked):
    (folder,) = [arguments for name, arguments, _ in asked if name == "vm.synced_folder"]
    lines = [options["inline"] for name, _, options in asked if name == "vm.provision"]
    assert folder == [".", "/portwatch"]
    assert all(" /portwatch" in f" {line}" for line in lines)


def test_it_is_provisioned_by_the_script_that_ci_runs(asked):
    lines = [options["inline"] for name, _, options in asked if name == "vm.provision"]
    script, *groups = lines[0].split()
    shared = ROOT / Path(script).relative_to("/portwatch")
    assert shared.stat().st_mode & 0o111
    assert set(groups) <= set(re.findall(r"^\t\[(\w+)\]=", shared.read_text(), re.MULTILINE))
    assert str(shared.relative_to(ROOT)) in (ROOT / ".ci" / "run").read_text()
    target = lines[1].removeprefix("make -C /portwatch ")
    assert target.replace(".venv", "$(VENV)") + ":" in (ROOT / "Makefile").read_text()
