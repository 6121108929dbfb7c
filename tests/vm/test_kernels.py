"""scripts/kernels_table.py makes a table from test results. scripts/kernels.py knows the documented kernels."""

import importlib
import re

import pytest
from support import ROOT

RESULT = """<testsuites><testsuite>
<properties>
<property name="kernel" value="6.1.0-56-amd64"/>
<property name="limited on core-stable" value="S16 S17"/>
</properties>
<testcase name="test_s01_tcp_over_ipv4[core-stable]"/>
<testcase name="test_s02_tcp_over_ipv6[core-stable-False]"/>
<testcase name="test_s02_tcp_over_ipv6[core-stable-True]"><failure/></testcase>
<testcase name="test_s17_udp[core-stable]"/>
<testcase name="test_s19_a_container[core-stable]"><skipped message="no cgroup v2 is mounted"/></testcase>
<testcase name="test_s28_io_uring[core-stable]"><skipped message="this kernel has no io_uring"/></testcase>
<testcase name="test_s01_tcp_over_ipv4[core-fentry]"/>
<testcase name="test_at_every_pause_listeners_and_holders_equal_ss[core-fentry-False]"/>
</testsuite></testsuites>"""
WITHOUT_FENTRY = """<testsuites><testsuite>
<properties><property name="kernel" value="5.10.0-40-amd64"/></properties>
<testcase name="test_s01_tcp_over_ipv4[bcc]"/>
</testsuite></testsuites>"""


@pytest.fixture
def import_script(monkeypatch):
    """A function that imports a module from scripts/."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


def test_the_table_shows_failures_limits_and_skipped_rows(import_script, tmp_path):
    (tmp_path / "5.10.xml").write_text(WITHOUT_FENTRY)
    (tmp_path / "6.1.xml").write_text(RESULT)
    table = import_script("kernels_table").table([tmp_path / "5.10.xml", tmp_path / "6.1.xml"])
    assert table.splitlines()[2:] == [
        "| 5.10.0-40-amd64 | 1 rows | not run | needs 5.12 |",
        "| 6.1.0-56-amd64 | not run |"
        " 1 rows; fails: S02; limited: S17; not in this kernel: S28; not run: S19 | 1 rows |",
    ]


def test_a_column_heading_names_the_engine_and_no_other_test_parameter(import_script, tmp_path):
    (tmp_path / "6.1.xml").write_text(RESULT.replace("core-stable", "core").replace("core-fentry", "core"))
    assert "| kernel | `core` |" in import_script("kernels_table").table([tmp_path / "6.1.xml"])


def test_every_kernel_that_the_documents_name_can_be_selected(import_script):
    kernels, kernels_table = import_script("kernels"), import_script("kernels_table")
    for name in re.findall(r"\bKERNEL=([\w.]+)", (ROOT / "CONTRIBUTING.md").read_text()):
        kernels.named(name)
    document = kernels_table.DOCUMENT.read_text()
    table = document.partition(kernels_table.BEGIN)[2].partition(kernels_table.END)[0]
    tested = set(re.findall(r"^\| (\d+\.\d+)", table, re.MULTILINE))
    # The newest kernel is in the table by its version, but it is selected by the name "newest".
    unknown = tested - {kernel.name for kernel in kernels.KERNELS}
    assert len(unknown) <= 1, f"scripts/kernels.py does not know these kernels of the table: {unknown}"


def test_an_unknown_kernel_is_an_error_that_lists_the_known_ones(import_script):
    with pytest.raises(SystemExit, match=r"KERNEL is one of 5\.10, 6\.1, 6\.12, newest"):
        import_script("kernels").named("2.4")
