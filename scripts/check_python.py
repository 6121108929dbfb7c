"""Says what to install where a virtual environment cannot be made."""

import sys

if sys.version_info < (3, 10):
    sys.exit("portwatch needs Python 3.10 or later; make PYTHON=python3.12 run takes another one")
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    sys.exit(
        "this Python cannot make virtual environments; "
        "install what does (Debian, Ubuntu: apt-get install python3-venv)"
    )
