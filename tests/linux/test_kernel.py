"""The lockdown mode of the running kernel."""

import os

import pytest

from portwatch.linux import kernel


@pytest.fixture
def securityfs(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel.mounts, "open_file_system", lambda _kind: os.open(tmp_path, os.O_RDONLY))
    return tmp_path


@pytest.mark.parametrize("mode", ["none", "integrity", "confidentiality"])
def test_the_lockdown_mode_is_the_one_in_brackets(mode, securityfs):
    content = "none integrity confidentiality\n".replace(mode, f"[{mode}]")
    (securityfs / "lockdown").write_text(content)
    assert kernel.lockdown() == mode


@pytest.mark.usefixtures("securityfs")
def test_the_lockdown_mode_is_the_text_none_on_a_kernel_built_without_lockdown():
    assert kernel.lockdown() == "none"


def test_the_lockdown_mode_is_unknown_if_securityfs_cannot_be_read(monkeypatch):
    def deny(_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel.mounts, "open_file_system", deny)
    assert kernel.lockdown() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: securityfs may have to be mounted")
def test_the_lockdown_mode_can_be_read_even_if_securityfs_is_not_mounted():
    assert kernel.lockdown() in ("none", "integrity", "confidentiality")
