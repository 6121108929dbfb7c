"""A machine on which the tests cannot run is told from one on which they fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.geteuid() != 0, reason="the tools are for the tests that need root")
def test_what_to_install_is_said_before_any_test_runs(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "test_width.py"]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "the tests need ip, ss, nsenter, unshare: apt-get install iproute2 util-linux" in result.stderr
