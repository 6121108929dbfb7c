"""GET /api/v0/openapi.json. The daemon must behave as this description says."""

import os
import subprocess
import sys

import schemathesis
from daemon import serving
from support import ROOT

OPTIONS = (
    *("--max-examples", "25"),
    *("--exclude-path", "/api/v0/events"),  # its response never ends
    *("--phases", "examples,coverage,fuzzing"),
    *("--workers", "1"),
    *("--seed", "1"),
    *("--generation-database", ":memory:"),
    "--no-color",
)


def test_schemathesis_finds_no_deviation_from_the_description(tmp_path):
    with serving("--journal", str(tmp_path / "journal")) as daemon:
        daemon.open_and_close_port()
        url = f"http://127.0.0.1:{daemon.port}/api/v0/openapi.json"
        schema = schemathesis.openapi.from_url(url)
        paths = {operation.ok().path for operation in schema.get_all_operations()}
        assert paths >= {"/api/v0/listening-ports", "/readyz"}
        result = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", url, *OPTIONS],
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "schemathesis_formats",
                "PYTHONPATH": str(ROOT / "tests"),
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert result.returncode == 0, result.stdout
