"""The Vagrantfile must refer to files and targets that exist. Ruby evaluates it here without Vagrant."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT


@pytest.fixture(scope="module")
def calls():
    """The configuration calls of the Vagrantfile. Each is a list: name, arguments, options."""
    if not shutil.which("ruby"):
        pytest.skip("needs Ruby (apt-get install ruby)")
    command = ["ruby", "-w", ROOT / "tests" / "vm" / "record_vagrantfile.rb", ROOT / "Vagrantfile"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_provisioning_commands_use_the_folder_to_which_the_project_is_synced(calls):
    (folder,) = [arguments for name, arguments, _ in calls if name == "vm.synced_folder"]
    lines = [options["inline"] for name, _, options in calls if name == "vm.provision"]
    assert folder == [".", "/portwatch"]
    assert all(" /portwatch" in f" {line}" for line in lines)


def test_the_machine_is_provisioned_by_the_script_that_ci_runs(calls):
    lines = [options["inline"] for name, _, options in calls if name == "vm.provision"]
    script, *groups = lines[0].split()
    script_path = ROOT / Path(script).relative_to("/portwatch")
    assert script_path.stat().st_mode & 0o111
    assert set(groups) <= set(re.findall(r"^\t\[(\w+)\]=", script_path.read_text(), re.MULTILINE))
    assert str(script_path.relative_to(ROOT)) in (ROOT / ".ci" / "run").read_text()
    target = lines[1].removeprefix("make -C /portwatch ")
    assert target.replace(".venv", "$(VENV)") + ":" in (ROOT / "Makefile").read_text()
