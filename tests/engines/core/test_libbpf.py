"""Errors of libbpf. Their texts say what the cause is, and what to do."""

import ctypes
import errno
import sys
import threading

import pytest
from commands import run
from privileges import needs_object

from portwatch.engines.core import libbpf, programs
from portwatch.engines.core.engine import CoreEngine
from portwatch.errors import EngineUnavailable, NotPermitted


@pytest.mark.parametrize("soname", ["libnosuch.so.1", "libc.so.6"], ids=["missing", "without 1.0's functions"])
def test_if_libbpf_is_missing_or_too_old_the_error_says_what_to_install(soname):
    with pytest.raises(
        EngineUnavailable, match=r"libbpf 1\.0 or later is required \(.*apt-get install libbpf1"
    ):
        libbpf.Libbpf(soname)


LOAD_AFTER_ANOTHER_INSTANCE_IS_GONE = """
import gc
from pathlib import Path
from portwatch.engines.core.libbpf import Libbpf, Object
from portwatch.errors import EngineUnavailable

first = Libbpf()
Libbpf()
gc.collect()
try:
    Object(first, Path({path!r}))
except EngineUnavailable as error:
    print(error)
"""


@needs_object
def test_libbpf_can_warn_after_an_instance_is_garbage_collected(tmp_path):
    """If each instance registered its own callback, libbpf would call a callback that has been freed."""
    damaged = tmp_path / "damaged.o"
    damaged.write_bytes(b"\x7fELF and then nothing of the kind")
    script = LOAD_AFTER_ANOTHER_INSTANCE_IS_GONE.format(path=str(damaged))
    result = run(command=[sys.executable, "-c", script])
    assert (result.returncode, result.stderr) == (0, "")
    assert f"cannot read the BPF object {damaged}" in result.stdout


@needs_object
def test_a_warning_reaches_the_thread_whose_call_caused_it():
    def warn(warning):
        libbpf._warnings.add(warning)
        barrier.wait(20)
        texts[warning] = str(library.failure("cannot load", errno.EINVAL))

    library, barrier, texts = libbpf.Libbpf(), threading.Barrier(2), {}
    threads = [threading.Thread(target=warn, args=[f"libbpf: {name}"]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for warning, text in texts.items():
        assert warning in text


@needs_object
@pytest.mark.parametrize("content", [None, b"", b"\x7fELF and then nothing of the kind"])
def test_if_the_object_is_missing_or_damaged_the_error_names_it_and_says_to_reinstall(
    content, monkeypatch, tmp_path
):
    path = tmp_path / "core.bpf.o"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(programs, "OBJECT", path)
    with pytest.raises(EngineUnavailable, match=f"{path}.*reinstall portwatch"):
        CoreEngine()


@needs_object
def test_if_the_constants_have_another_size_the_error_blames_another_version(monkeypatch):
    class LargerSettings(ctypes.Structure):
        _fields_ = (("more", ctypes.c_uint64 * 100),)

        def __init__(self, *_args, **_kwargs):
            super().__init__()

    monkeypatch.setattr(programs, "_Settings", LargerSettings)
    with pytest.raises(EngineUnavailable, match="belongs to another version"):
        CoreEngine()


@needs_object
def test_if_a_program_or_map_is_missing_the_error_blames_another_version():
    opened = libbpf.Object(libbpf.Libbpf(), programs.OBJECT)
    try:
        with pytest.raises(EngineUnavailable, match="belongs to another version"):
            opened.attach("no_such_program")
        with pytest.raises(EngineUnavailable, match="belongs to another version"):
            opened.map_fd("no_such_map")
    finally:
        opened.close()


@pytest.fixture
def failure(monkeypatch):
    """A function that returns the exception for an errno and libbpf's warnings. No other cause is present."""
    monkeypatch.setattr(libbpf.capabilities, "missing_for_programs", list)
    monkeypatch.setattr(libbpf.capabilities, "memlock", lambda: None)
    monkeypatch.setattr(libbpf.kernel, "lockdown", lambda: "integrity")
    library = libbpf.Libbpf()

    def make(number, *warnings):
        for warning in warnings:
            libbpf._warnings.add(warning)
        return library.failure("the kernel refuses to load the BPF programs", number)

    return make


def test_eperm_with_all_capabilities_blames_security_modules_and_seccomp(failure):
    error = failure(errno.EPERM)
    assert isinstance(error, NotPermitted)
    assert "a security module or a container's seccomp profile" in str(error)
    assert "portwatch doctor" in str(error)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL])
def test_if_the_verifier_rejects_a_program_the_error_does_not_blame_privileges(number, failure):
    assert not isinstance(failure(number), NotPermitted)


@pytest.mark.parametrize(
    ("number", "warning"),
    [
        (errno.EINVAL, "libbpf: prog 'sock_set_state': BPF program load failed: Invalid argument"),
        (errno.EPERM, "libbpf: prog 'sock_set_state': BPF program load failed: Operation not permitted"),
    ],
)
def test_under_lockdown_for_confidentiality_the_error_says_how_to_boot(number, warning, failure, monkeypatch):
    monkeypatch.setattr(libbpf.kernel, "lockdown", lambda: "confidentiality")
    error = failure(number, warning)
    assert isinstance(error, NotPermitted)
    assert "locked down in confidentiality mode" in str(error)
    assert "boot with lockdown=integrity" in str(error)


def test_if_memlock_cannot_be_raised_the_error_says_what_to_type(failure, monkeypatch):
    monkeypatch.setattr(libbpf.capabilities, "memlock", lambda: 65_536)
    error = failure(
        errno.EPERM,
        "libbpf: Error in bpf_create_map_xattr(calls):Operation not permitted(-1). Retrying without BTF.",
        "libbpf: map 'calls': failed to create: Operation not permitted(-1)",
        "libbpf: permission error while running as root; try raising 'ulimit -l'? current value: 64.0 KiB",
    )
    assert isinstance(error, NotPermitted)
    assert "RLIMIT_MEMLOCK, which is 64 KiB" in str(error)
    assert "ulimit -l unlimited" in str(error)
