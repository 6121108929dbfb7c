"""Finding bcc and the kernel's headers, and compiling the programs. Errors say what to install."""

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
    """Make bcc importable only from where the test puts it."""
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
def test_if_bcc_is_missing_the_error_says_what_to_install():
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
def test_if_importing_bcc_fails_the_error_says_to_reinstall_it(content, monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "DIST_PACKAGES", package(tmp_path, content))
    before = sys.path[:]
    with pytest.raises(EngineUnavailable, match=r"importing it fails .*apt-get install --reinstall"):
        compiler.find_bcc()
    assert sys.path == before
    assert "bcc" not in sys.modules


@pytest.mark.usefixtures("no_bcc")
def test_a_package_called_bcc_that_is_not_the_distributions_is_skipped(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(*package(tmp_path, "something_else = 1"))
    (tmp_path / "dist").mkdir()
    monkeypatch.setattr(compiler, "DIST_PACKAGES", package(tmp_path / "dist", "class BPF: pass"))
    before = sys.path[:]
    assert compiler.find_bcc().__file__.startswith(str(tmp_path / "dist"))
    assert sys.path == before


@pytest.fixture
def bcc():
    """The distribution's bcc."""
    try:
        return compiler.find_bcc()
    except EngineUnavailable as error:
        pytest.skip(f"{error}; or run make setup-bcc")


@pytest.mark.usefixtures("bcc")
def test_a_compiler_error_is_in_the_exception_and_not_printed_to_stderr(monkeypatch, tmp_path, capfd):
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
def test_the_running_kernels_headers_are_found(tmp_path, written_in):
    folder = headers_of(tmp_path, RELEASE, written_in)
    write(folder / "include/linux/kconfig.h")
    running = headers.of_running_kernel(tmp_path, RELEASE)
    assert running == headers.Headers(source=folder, build=folder)
    assert running.flags == []


def test_headers_in_two_folders_are_combined(tmp_path):
    build = headers_of(tmp_path, RELEASE)
    write(build / "arch/x86/include/generated/asm/rwonce.h")
    source = tmp_path / RELEASE / "source"
    write(source / "include/linux/kconfig.h")
    running = headers.of_running_kernel(tmp_path, RELEASE)
    assert running == headers.Headers(source, build)
    assert running.flags == [f"-I{build}/include", f"-I{build}/arch/x86/include/generated"]


def test_incomplete_headers_are_refused(tmp_path):
    headers_of(tmp_path, RELEASE)
    with pytest.raises(EngineUnavailable, match=f"kconfig.h is missing.* --reinstall linux-headers-{RELEASE}"):
        headers.of_running_kernel(tmp_path, RELEASE)


@pytest.mark.parametrize("written_in", ["include/generated/utsrelease.h", "include/config/kernel.release"])
def test_headers_of_another_kernel_are_refused(tmp_path, written_in):
    headers_of(tmp_path, "6.1.0-17-amd64", written_in)
    with pytest.raises(EngineUnavailable, match=r"are for 6\.1\.0-17-amd64, but 6\.1\.0-18-amd64 is running"):
        headers.of_running_kernel(tmp_path, RELEASE)


def test_headers_of_an_unknown_kernel_are_refused(tmp_path):
    (tmp_path / RELEASE / "build").mkdir(parents=True)
    with pytest.raises(EngineUnavailable, match="are for an unknown kernel"):
        headers.of_running_kernel(tmp_path, RELEASE)


def test_without_btf_and_headers_the_error_names_the_package(monkeypatch, tmp_path, bcc):
    monkeypatch.setattr(compiler, "find_bcc", lambda: bcc)
    monkeypatch.setattr(compiler, "VMLINUX", tmp_path / "vmlinux")
    monkeypatch.setattr(headers.of_running_kernel, "__defaults__", (tmp_path, RELEASE))
    with pytest.raises(EngineUnavailable, match=f"apt-get install linux-headers-{RELEASE}"):
        compiler.compile_programs(ephemeral=False)


# Newer kernels are left out, because Debian 12's bcc cannot compile their headers.
@pytest.fixture(params=["5.10", "6.1"])
def debians_headers(request, monkeypatch, tmp_path):
    """Pretend that a kernel of Debian is running which has headers, but no BTF."""
    modules = kernels.CACHE / request.param / "root/lib/modules"
    builds = [path.parent for path in modules.glob("*/build")]
    if not builds:
        pytest.skip(f"{modules} has no headers; KERNEL={request.param} make test-vm downloads them")
    monkeypatch.setattr(compiler, "VMLINUX", tmp_path / "vmlinux")
    monkeypatch.setattr(headers.of_running_kernel, "__defaults__", (modules, builds[0].name))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, because bcc creates the maps when it compiles")
@pytest.mark.usefixtures("bcc", "debians_headers")
def test_without_btf_the_programs_compile_with_the_kernels_headers(bcc):
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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, because bcc creates the maps when it compiles")
@pytest.mark.usefixtures("bcc")
def test_the_users_variables_for_bcc_are_ignored_and_restored(tmp_path):
    variables = {"ARCH": "arm", "BCC_LINUX_VERSION_CODE": "328450", "BCC_KERNEL_SOURCE": "/nowhere"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == (f"{variables}\n", "")


def test_if_stderr_cannot_be_redirected_engine_unavailable_is_raised(monkeypatch, bcc):
    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(compiler, "find_bcc", lambda: bcc)
    monkeypatch.setattr(os, "memfd_create", fail)
    with pytest.raises(EngineUnavailable, match=r"cannot compile .*Too many open files"):
        compiler.compile_programs(ephemeral=False)


def test_two_threads_that_redirect_stderr_at_once_restore_it():
    before = os.fstat(2)
    entered, leave, overlapped = threading.Event(), threading.Event(), threading.Event()

    def first():
        with compiler.quiet([]):
            entered.set()
            leave.wait()

    def second():
        with compiler.quiet([]):
            overlapped.set()
            threads[0].join()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    entered.wait()
    threads[1].start()
    overlapped.wait(0.2)
    leave.set()
    for thread in threads:
        thread.join()
    assert os.path.samestat(os.fstat(2), before)
