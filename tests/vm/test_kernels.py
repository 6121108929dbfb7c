"""The kernels that are named are the ones that are documented, and results become README's table."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

RESULT = """<testsuites><testsuite>
<properties>
<property name="kernel" value="6.1.0-56-amd64"/>
<property name="limited on core-stable" value="S16 S17"/>
</properties>
<testcase name="test_s01_tcp_v4[core-stable]"/>
<testcase name="test_s02_tcp_v6[core-stable-False]"/>
<testcase name="test_s02_tcp_v6[core-stable-True]"><failure/></testcase>
<testcase name="test_s17_udp[core-stable]"/>
<testcase name="test_s28_io_uring[core-stable]"><skipped/></testcase>
<testcase name="test_s01_tcp_v4[core-fentry]"/>
<testcase name="test_at_rest_the_table_is_what_ss_says[CoreEngine-False-fentry]"/>
</testsuite></testsuites>"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


def test_a_result_becomes_a_row_that_hides_nothing(script, tmp_path):
    result = tmp_path / "6.1.xml"
    result.write_text(RESULT)
    assert script("kernels_table").table([result]).splitlines()[-1] == (
        "| 6.1.0-56-amd64 | 1 rows; fails: S02; limited: S17; not in this kernel: S28 | 1 rows |"
    )


def test_an_unknown_kernel_is_answered_with_the_known_ones(script):
    with pytest.raises(SystemExit, match=r"KERNEL is one of 5\.10, 6\.1, 6\.12, newest"):
        script("kernels").named("2.4")
