"""The public names of the package, which are imported on first use."""

import subprocess
import sys
from importlib import import_module

import pytest

import portwatch


def test_importing_the_package_imports_no_submodule():
    script = "import portwatch, sys; print([name for name in sys.modules if name.startswith('portwatch.')])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("name", portwatch.__all__)
def test_every_public_name_can_be_imported(name):
    namespace = {}
    exec(f"from portwatch import {name}", namespace)  # noqa: S102  # the import statement that users write
    assert namespace[name] is getattr(portwatch, name)


def test_the_table_of_exports_contains_exactly_the_names_in_all():
    exports = [name for names in portwatch._EXPORTS.values() for name in names]
    assert sorted(exports) == sorted(portwatch.__all__)


def test_every_public_name_is_imported_from_the_module_in_the_table_of_exports():
    for module, names in portwatch._EXPORTS.items():
        for name in names:
            assert getattr(portwatch, name) is getattr(import_module(f"portwatch.{module}"), name)


def test_dir_lists_the_public_names_before_their_first_use():
    script = "import portwatch; print(set(portwatch.__all__) <= set(dir(portwatch)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="module 'portwatch' has no attribute 'nosuch'"):
        portwatch.nosuch  # noqa: B018  # accessing the attribute raises
