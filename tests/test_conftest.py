"""If tools that the tests need are missing, the run stops before the first test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.geteuid() != 0, reason="only tests that need root use the tools")
def test_missing_tools_are_reported_with_their_packages_before_any_test_runs(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "test_event.py"]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "the tests need ip, ss, nsenter, unshare: apt-get install iproute2 util-linux" in result.stderr
