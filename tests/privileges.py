"""Command prefixes that drop privileges or change mounts, and pytest marks for tests that need privileges."""

import os
import shutil
import subprocess
import sys

import pytest
from support import PATIENCE

from portwatch.engines.core.engine import CoreEngine
from portwatch.engines.core.programs import OBJECT
from portwatch.errors import EngineUnavailable
from portwatch.linux.kernel import VMLINUX

NO_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
NOBODY = [*NO_CAPABILITIES, "--reuid=65534", "--regid=65534", "--clear-groups"]


def in_private_mounts(setup):
    """Return a prefix that runs `setup` and then the prefixed command in a new mount namespace."""
    return ["unshare", "--mount", "sh", "-c", f'{setup} && exec "$@"', "sh"]


def _core_works():
    try:
        engine = CoreEngine()
    except EngineUnavailable:
        return False
    try:
        engine.attach()
    except EngineUnavailable:
        return False
    finally:
        engine.detach()
    return True


def _succeeds(*command):
    return not subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode


def _can_drop_privileges():
    tools = ("setpriv", "prlimit", "unshare")
    return (
        os.geteuid() == 0
        and all(map(shutil.which, tools))
        and _succeeds("unshare", "--mount", *NO_CAPABILITIES, "true")
    )


def _nobody_can_import_portwatch():
    return _can_drop_privileges() and _succeeds(*NOBODY, sys.executable, "-c", "import portwatch")


needs_root = pytest.mark.skipif(
    not _can_drop_privileges(),
    reason="needs root and util-linux, to run commands without privileges and in new mount namespaces",
)
needs_core = pytest.mark.skipif(os.geteuid() != 0 or not _core_works(), reason="needs a working core engine")
needs_object = pytest.mark.skipif(
    not OBJECT.exists() or not VMLINUX.exists(), reason="needs BTF and the compiled BPF object"
)
needs_nobody = pytest.mark.skipif(
    not _nobody_can_import_portwatch(),
    reason="needs a Python and packages that the user `nobody` can read",
)
