"""Snapshots from sock_diag and /proc."""

import errno
import os

import pytest

from portwatch.engines import sock_diag_snapshot
from portwatch.engines.choice import choose
from portwatch.engines.protocol import Options
from portwatch.errors import EngineUnavailable
from portwatch.linux import netns, procfs
from portwatch.snapshot import owners


def test_if_sock_diag_does_not_answer_the_error_names_the_modules_to_load(monkeypatch):
    def fail(_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(sock_diag_snapshot.sock_diag, "open_sockets", fail)
    with pytest.raises(EngineUnavailable, match="modprobe inet_diag"):
        choose("poll", Options(), prove=lambda engine: engine.snapshot())


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError, PermissionError])
@pytest.mark.usefixtures("listening_port")
def test_a_process_that_ends_while_proc_is_read_is_skipped(error, monkeypatch):
    read, namespace = procfs.read, procfs.namespace

    def fail_to_read_status(pid, name):
        if name == "status":
            raise error
        return read(pid, name)

    def fail_to_read_namespaces_of_pids(pid, kind):
        if isinstance(pid, int):
            raise error
        return namespace(pid, kind)

    inodes = set(procfs.socket_inodes(os.getpid()))
    assert owners.holders_by_inode(inodes)
    monkeypatch.setattr(procfs, "read", fail_to_read_status)
    monkeypatch.setattr(procfs, "namespace", fail_to_read_namespaces_of_pids)
    assert owners.holders_by_inode(inodes) == {}
    assert netns.own().inode in {namespace.inode for namespace in netns.all_namespaces()}
