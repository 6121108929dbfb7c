"""Results become README's table, and the kernels that it names are those that can be run."""

import importlib
import re

import pytest
from support import ROOT

RESULT = """<testsuites><testsuite>
<properties>
<property name="kernel" value="6.1.0-56-amd64"/>
<property name="limited on core-stable" value="S16 S17"/>
</properties>
<testcase name="test_s01_tcp_v4[core-stable]"/>
<testcase name="test_s02_tcp_v6[core-stable-False]"/>
<testcase name="test_s02_tcp_v6[core-stable-True]"><failure/></testcase>
<testcase name="test_s17_udp[core-stable]"/>
<testcase name="test_s19_a_container[core-stable]"><skipped message="no cgroup v2 is mounted"/></testcase>
<testcase name="test_s28_io_uring[core-stable]"><skipped message="this kernel has no such"/></testcase>
<testcase name="test_s01_tcp_v4[core-fentry]"/>
<testcase name="test_at_rest_the_table_is_what_ss_says[core-fentry-False]"/>
</testsuite></testsuites>"""
WITHOUT_FENTRY = """<testsuites><testsuite>
<properties><property name="kernel" value="5.10.0-40-amd64"/></properties>
<testcase name="test_s01_tcp_v4[bcc]"/>
</testsuite></testsuites>"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


def test_results_become_a_table_that_hides_nothing(script, tmp_path):
    (tmp_path / "5.10.xml").write_text(WITHOUT_FENTRY)
    (tmp_path / "6.1.xml").write_text(RESULT)
    table = script("kernels_table").table([tmp_path / "5.10.xml", tmp_path / "6.1.xml"])
    assert table.splitlines()[2:] == [
        "| 5.10.0-40-amd64 | 1 rows | not run | needs 5.12 |",
        "| 6.1.0-56-amd64 | not run |"
        " 1 rows; fails: S02; limited: S17; not in this kernel: S28; not run: S19 | 1 rows |",
    ]


def test_of_an_engine_whose_hooks_were_not_named_a_parameter_is_no_part(script, tmp_path):
    (tmp_path / "6.1.xml").write_text(RESULT.replace("core-stable", "core").replace("core-fentry", "core"))
    assert "| kernel | `core` |" in script("kernels_table").table([tmp_path / "6.1.xml"])


def test_the_kernels_that_readme_names_can_be_run(script):
    kernels, readme = script("kernels"), (ROOT / "README.md").read_text()
    for name in re.findall(r"\bKERNEL=([\w.]+)", readme):
        kernels.named(name)
    table = readme.partition(script("kernels_table").BEGIN)[2].partition(script("kernels_table").END)[0]
    tested = set(re.findall(r"^\| (\d+\.\d+)", table, re.MULTILINE))
    assert len(tested - {kernel.name for kernel in kernels.KERNELS}) <= 1, (
        "more than the newest is none of ours"
    )


def test_an_unknown_kernel_is_answered_with_the_known_ones(script):
    with pytest.raises(SystemExit, match=r"KERNEL is one of 5\.10, 6\.1, 6\.12, newest"):
        script("kernels").named("2.4")
