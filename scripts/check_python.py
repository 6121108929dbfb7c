"""Exit with advice if this Python is too old or cannot create virtual environments."""

import sys

if sys.version_info < (3, 10):
    sys.exit("portwatch needs Python 3.10 or later. To use another interpreter: make PYTHON=python3.12 run")
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    sys.exit(
        "this Python cannot create virtual environments: venv or ensurepip is missing "
        "(Debian, Ubuntu: apt-get install python3-venv)"
    )
