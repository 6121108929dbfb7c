"""What bcc needs and may lack: said in one line, with what to install."""

import sys

import pytest

from portwatch.engines.bcc import compiler, headers
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


def headers_of(tmp_path, named, written_in="include/generated/utsrelease.h"):
    folder = tmp_path / RELEASE / "build"
    file = folder / written_in
    file.parent.mkdir(parents=True)
    file.write_text(f'#define UTS_RELEASE "{named}"\n' if written_in.endswith(".h") else f"{named}\n")
    return folder


@pytest.mark.parametrize("written_in", ["include/generated/utsrelease.h", "include/config/kernel.release"])
def test_the_running_kernels_headers_are_taken(tmp_path, written_in):
    folder = headers_of(tmp_path, RELEASE, written_in)
    assert headers.of_running_kernel(tmp_path, RELEASE) == folder


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
