"""What bcc needs and may lack: said in one line, with what to install."""

import atexit
import errno
import os
import subprocess
import sys
import threading

import kernels
import pytest

from portwatch.engines.bcc import compiler, headers, hooks
from portwatch.errors import EngineUnavailable

RELEASE = "6.1.0-18-amd64"


@pytest.fixture
def no_bcc(monkeypatch):
    """No bcc anywhere but where a test puts one."""
    compiler._forget()
    monkeypatch.setattr(compiler, "DIST_PACKAGES", ())
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "dist-packages" not in path])
    yield
    compiler._forget()


def package(tmp_path, content):
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text(content)
    return (str(tmp_path),)


@pytest.mark.usefixtures("no_bcc")
def test_bcc_missing_says_what_to_install():
    with pytest.raises(EngineUnavailable, match="apt-get install python3-bpfcc"):
        compiler.find_bcc()


@pytest.mark.usefixtures("no_bcc")
@pytest.mark.parametrize(
    "content",
    [
        "import ctypes; ctypes.CDLL('libbcc-of-nobody.so.0')",
        "import a_module_that_is_not_there",
        "raise AttributeError('undefined symbol: bpf_module_create')",
        "def broken(:",
    ],
)
def test_bcc_that_does_not_load_says_to_install_it_again(content, monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "DIST_PACKAGES", package(tmp_path, content))
    before = sys.path[:]
    with pytest.raises(EngineUnavailable, match=r"does not load .*apt-get install --reinstall"):
        compiler.find_bcc()
    assert sys.path == before
    assert "bcc" not in sys.modules


@pytest.mark.usefixtures("no_bcc")
def test_pypis_package_of_that_name_is_not_taken_for_it(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(*package(tmp_path, "something_else = 1"))
    (tmp_path / "dist").mkdir()
    monkeypatch.setattr(compiler, "DIST_PACKAGES", package(tmp_path / "dist", "class BPF: pass"))
    before = sys.path[:]
    assert compiler.find_bcc().__file__.startswith(str(tmp_path / "dist"))
    assert sys.path == before


@pytest.fixture
def bcc():
    """The distribution's bcc, which CI has."""
    try:
        return compiler.find_bcc()
    except EngineUnavailable as error:
        pytest.skip(f"{error}, or: make setup-bcc")


@pytest.mark.usefixtures("bcc")
def test_what_llvm_cannot_compile_is_said_in_its_words_and_not_on_the_terminal(monkeypatch, tmp_path, capfd):
    for name in ("bcc.bpf.c", "kernel.h"):
        content = (compiler.SOURCES / name).read_text()
        (tmp_path / name).write_text(content if name == "kernel.h" else "int broken(void *ctx) { return x; }")
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    with pytest.raises(EngineUnavailable, match=r"cannot compile .*error: use of undeclared identifier 'x'"):
        compiler.compile_programs(ephemeral=False)
    assert capfd.readouterr().err == ""


def write(file, content=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def headers_of(tmp_path, named, written_in="include/generated/utsrelease.h"):
    folder = tmp_path / RELEASE / "build"
    write(
        folder / written_in, f'#define UTS_RELEASE "{named}"\n' if written_in.endswith(".h") else f"{named}\n"
    )
    return folder


@pytest.mark.parametrize("written_in", ["include/generated/utsrelease.h", "include/config/kernel.release"])
def test_the_running_kernels_headers_are_taken(tmp_path, written_in):
    folder = headers_of(tmp_path, RELEASE, written_in)
    write(folder / "include/linux/kconfig.h")
    found = headers.of_running_kernel(tmp_path, RELEASE)
    assert found == headers.Headers(source=folder, build=folder)
    assert found.flags == []


def test_headers_in_two_folders_are_taken_together(tmp_path):
    build = headers_of(tmp_path, RELEASE)
    write(build / "arch/x86/include/generated/asm/rwonce.h")
    source = tmp_path / RELEASE / "source"
    write(source / "include/linux/kconfig.h")
    found = headers.of_running_kernel(tmp_path, RELEASE)
    assert found == headers.Headers(source, build)
    assert found.flags == [f"-I{build}/include", f"-I{build}/arch/x86/include/generated"]


def test_headers_that_are_not_whole_are_refused(tmp_path):
    headers_of(tmp_path, RELEASE)
    with pytest.raises(EngineUnavailable, match=f"kconfig.h is missing.* --reinstall linux-headers-{RELEASE}"):
        headers.of_running_kernel(tmp_path, RELEASE)


@pytest.mark.parametrize("written_in", ["include/generated/utsrelease.h", "include/config/kernel.release"])
def test_headers_of_another_kernel_are_refused(tmp_path, written_in):
    headers_of(tmp_path, "6.1.0-17-amd64", written_in)
    with pytest.raises(EngineUnavailable, match=r"are of 6.1.0-17-amd64, and 6.1.0-18-amd64 runs"):
        headers.of_running_kernel(tmp_path, RELEASE)


def test_headers_that_do_not_say_of_what_kernel_they_are_are_refused(tmp_path):
    (tmp_path / RELEASE / "build").mkdir(parents=True)
    with pytest.raises(EngineUnavailable, match="do not name"):
        headers.of_running_kernel(tmp_path, RELEASE)


def test_without_btf_and_headers_the_package_is_named(monkeypatch, tmp_path, bcc):
    monkeypatch.setattr(compiler, "find_bcc", lambda: bcc)
    monkeypatch.setattr(compiler, "VMLINUX", tmp_path / "vmlinux")
    monkeypatch.setattr(headers.of_running_kernel, "__defaults__", (tmp_path, RELEASE))
    with pytest.raises(EngineUnavailable, match=f"apt-get install linux-headers-{RELEASE}"):
        compiler.compile_programs(ephemeral=False)


# Those of later kernels are for a later bcc than Debian 12 has.
@pytest.fixture(params=["5.10", "6.1"])
def debians_headers(request, monkeypatch, tmp_path):
    """The headers of one of Debian's kernels, as where that runs and has no BTF."""
    modules = kernels.CACHE / request.param / "root/lib/modules"
    found = [path.parent for path in modules.glob("*/build")]
    if not found:
        pytest.skip(f"there are no headers in {modules}: KERNEL={request.param} make test-vm fetches them")
    monkeypatch.setattr(compiler, "VMLINUX", tmp_path / "vmlinux")
    monkeypatch.setattr(headers.of_running_kernel, "__defaults__", (modules, found[0].name))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: bcc makes the maps as it compiles")
@pytest.mark.usefixtures("bcc", "debians_headers")
def test_the_programs_compile_against_the_kernels_headers_where_there_is_no_btf(bcc):
    bpf = compiler.compile_programs(ephemeral=False).bpf
    try:
        for name in hooks.RAW_TRACEPOINTS:
            bpf.load_func(name.encode(), bcc.BPF.RAW_TRACEPOINT)
        for probe in (*hooks.KPROBES, *hooks.FAILURE_KPROBES, *hooks.MPTCP_KPROBES):
            for name in filter(None, (probe.entry, probe.exit)):
                bpf.load_func(name.encode(), bcc.BPF.KPROBE)
    finally:
        bpf.cleanup()
        atexit.unregister(bpf.cleanup)


COMPILE = """
import os
from portwatch.engines.bcc.compiler import compile_programs
compile_programs(ephemeral=False)
print({name: os.environ[name] for name in ("ARCH", "BCC_LINUX_VERSION_CODE", "BCC_KERNEL_SOURCE")})
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: bcc makes the maps as it compiles")
@pytest.mark.usefixtures("bcc")
def test_variables_for_other_users_of_bcc_change_nothing_and_put_nothing_on_standard_output(tmp_path):
    theirs = {"ARCH": "arm", "BCC_LINUX_VERSION_CODE": "328450", "BCC_KERNEL_SOURCE": "/nowhere"}
    ended = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | theirs,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == (f"{theirs}\n", "")


def test_what_cannot_be_kept_from_the_terminal_is_a_refusal_and_no_traceback(monkeypatch, bcc):
    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(compiler, "find_bcc", lambda: bcc)
    monkeypatch.setattr(os, "memfd_create", full)
    with pytest.raises(EngineUnavailable, match=r"cannot compile .*Too many open files"):
        compiler.compile_programs(ephemeral=False)


def test_two_that_keep_quiet_at_once_leave_standard_error_as_it_was():
    before = os.fstat(2)
    begun, leave, overlaps = threading.Event(), threading.Event(), threading.Event()

    def first():
        with compiler.quiet([]):
            begun.set()
            leave.wait()

    def second():
        with compiler.quiet([]):
            overlaps.set()
            threads[0].join()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    overlaps.wait(0.2)
    leave.set()
    for thread in threads:
        thread.join()
    assert os.path.samestat(os.fstat(2), before)
