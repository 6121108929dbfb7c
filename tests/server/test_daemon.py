"""The daemon as a process: start, stop, signals, reload, event log, systemd, and a journal on a full disk."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import threading

import pytest
from daemon import PATIENCE, free_port, serving, start_fails
from support import wait_until

NOT_RELOADED = "not reloaded, the old settings stay in force: "


def test_the_error_for_a_port_in_use_names_the_command_that_shows_its_holder(port):
    assert start_fails("--listen", f"127.0.0.1:{port}") == (
        f"portwatch: cannot listen on 127.0.0.1:{port}: the port is in use "
        f"(`portwatch who tcp/{port}` shows by which process)\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_daemon_and_ends_all_event_streams(number, tmp_path):
    path = tmp_path / "sock"
    with serving("--listen", f"unix:{path}") as daemon, daemon.subscribe() as events:
        assert path.exists()
        status, _, errors = daemon.stop(number)
        assert (status, errors) == (0, "")
        assert not path.exists()
        for _ in events:  # the stream ends
            pass


def test_the_daemon_can_restart_at_once_on_the_same_port():
    port = free_port()
    for _ in range(2):
        with serving(port=port) as daemon, daemon.subscribe():
            assert daemon.stop()[0] == 0


def test_each_event_is_written_to_standard_output_as_one_line():
    with serving("--log", "json") as daemon:
        port = daemon.open_and_close_port()
        _, output, _ = daemon.stop()
    events = [event for event in map(json.loads, output.splitlines()) if event["port"] == port]
    assert [event["kind"] for event in events] == ["open", "close"]


def test_with_log_json_diagnostics_are_json_as_well(tmp_path, port):
    (message,) = map(json.loads, start_fails("--log", "json", "--listen", f"127.0.0.1:{port}").splitlines())
    assert (message["level"], "cannot listen on" in message["message"]) == ("error", True)
    config = tmp_path / "portwatch.toml"
    config.write_text('log = "json"\n')
    with serving("--config", str(config)) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        message = json.loads(daemon.process.stderr.readline())
        assert (message["level"], message["message"]) == ("info", "reloaded")


def test_a_closed_standard_output_does_not_block_the_daemon():
    with serving() as daemon:
        daemon.process.stdout.close()
        for _ in range(2):
            daemon.open_and_close_port()


def test_an_unread_standard_output_does_not_block_the_daemon():
    with serving("--log", "json") as daemon:
        daemon.open_and_close_ports(fcntl.fcntl(daemon.process.stdout, fcntl.F_GETPIPE_SZ) // 500)
        daemon.open_and_close_port()
        assert daemon.stop()[0] == 0


def test_no_event_is_lost_during_a_reload(tmp_path):
    config = tmp_path / "portwatch.toml"
    config.write_text("not-port = 1\n")
    with serving("--config", str(config)) as daemon, daemon.subscribe() as events:
        received, is_over = [], threading.Event()
        ports = []

        def open_and_close_ports():
            while not is_over.is_set():
                with socket.create_server(("127.0.0.1", 0)) as server:
                    ports.append(server.getsockname()[1])
                    daemon.wait_for(ports[-1])

        opening = threading.Thread(target=open_and_close_ports)
        opening.start()
        wait_until(lambda: len(ports) > 2, "some ports to open before the reload")
        config.write_text("not-port = [1, 2]\n")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(ports) > 20, "more ports to open")
        is_over.set()
        opening.join()
        with socket.create_server(("127.0.0.1", 0)) as last:
            for event in events:
                received.append(event)
                if event[1] == "open" and event[2]["port"] == last.getsockname()[1]:
                    break
        gaps = [(kind, data["lost"]) for _, kind, data in received if kind == "gap"]
        assert gaps == [("gap", 0)]
        for port in set(ports):
            kinds = [kind for _, kind, data in received if data["port"] == port and data["origin"] == "event"]
            assert kinds == ["open", "close"] * ports.count(port)
        assert [seq for seq, _, _ in received] == sorted({seq for seq, _, _ in received})


def test_after_a_reload_open_ports_that_are_now_in_the_scope_are_reported(tmp_path, port):
    config = tmp_path / "portwatch.toml"
    config.write_text(f"not-port = {port}\n")
    with serving("--config", str(config)) as daemon:
        assert daemon.ports(f"?port={port}") == []
        with daemon.subscribe() as events:
            config.write_text("")
            daemon.process.send_signal(signal.SIGHUP)
            assert next(events)[1] == "gap"
            opened = next(data for _, kind, data in events if data["port"] == port)
            assert (opened["kind"], opened["origin"]) == ("open", "snapshot")
        assert daemon.ports(f"?port={port}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("lisen = 1\n", "{config}: unknown option 'lisen'; did you mean 'listen'?"),
        ("ephemeral = true\n", "ephemeral cannot change while the daemon runs: restart it"),
        ('log = "json"\n', "{config}: log cannot change while"),
        ('procfs = "/tmp"\n', "{config}: procfs cannot change while"),
        ('expect = "tcp/1"\nport = 2\n', "tcp/1 is expected but not watched"),
        ("pid = 2147483647\n", "there is no process 2147483647"),
        (f"port = {'[' * 5000}", "{config} is nested too deeply to be read"),
    ],
)
def test_a_reload_with_invalid_settings_changes_nothing_and_logs_the_reason(tmp_path, port, content, reason):
    config = tmp_path / "portwatch.toml"
    config.write_text("")
    with serving("--config", str(config)) as daemon:
        config.write_text(content)
        daemon.process.send_signal(signal.SIGHUP)
        line = daemon.process.stderr.readline()
        assert NOT_RELOADED + reason.format(config=config) in line
        daemon.wait_for(port)
        config.write_text(f"not-port = {port}\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.process.stderr.readline() == "portwatch: reloaded\n"
        assert not daemon.ports(f"?port={port}")


def test_systemd_is_notified_when_the_daemon_is_ready_is_alive_reloads_and_stops(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        with serving(environment=environment) as daemon:
            messages = []
            while messages.count("READY=1") < 1 or messages.count("WATCHDOG=1") < 2:
                messages.append(manager.recv(200).decode())
            assert set(messages) == {"READY=1", "WATCHDOG=1"}
            daemon.process.send_signal(signal.SIGHUP)
            while not (message := manager.recv(200).decode()).startswith("RELOADING=1\nMONOTONIC_USEC="):
                assert message == "WATCHDOG=1"
            while (message := manager.recv(200).decode()) != "READY=1":
                assert message == "WATCHDOG=1"
            daemon.stop()
            while (message := manager.recv(200).decode()) != "STOPPING=1":
                assert message == "WATCHDOG=1"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_full_disk_is_reported_by_readyz_and_no_event_is_lost(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        with serving("--journal", str(tmp_path / "journal")) as daemon:

            def readiness():
                return daemon.request("/readyz")[2]

            (tmp_path / "ballast").write_bytes(b"")
            with contextlib.suppress(OSError), open(tmp_path / "ballast", "ab", buffering=0) as ballast:
                while True:
                    ballast.write(b"x" * 4096)
            port = daemon.open_and_close_port()
            wait_until(lambda: readiness()["degraded"], "the full disk to be reported")
            status, _, state = daemon.request("/readyz")
            assert (status, len(state["degraded"])) == (200, 1)
            assert "the journal cannot be written: " in state["degraded"][0]
            (tmp_path / "ballast").unlink()
            wait_until(lambda: not readiness()["degraded"], "the disk to be reported as writable again")
            wait_until(
                lambda: len(daemon.history(f"?port={port}")["events"]) == 2, "the events that were not written"
            )
            daemon.stop()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_that_is_not_a_journal_is_refused_and_not_changed(tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(b"my diary")
    assert "is not a portwatch journal" in start_fails("--listen", "127.0.0.1:0", "--journal", str(path))
    assert path.read_bytes() == b"my diary"


def test_an_empty_file_is_accepted_as_a_new_journal(tmp_path):
    path = tmp_path / "journal"
    path.write_bytes(b"")
    with serving("--journal", str(path)) as daemon:
        assert daemon.stop()[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="creates a container's namespaces, which needs root")
def test_a_daemon_in_a_container_sees_host_processes_through_the_mounted_procfs(tmp_path, port):
    script = f'mount --bind /proc {tmp_path} && exec unshare --pid --fork --kill-child --mount-proc "$@"'
    container = ["unshare", "--mount", "sh", "-c", script, "sh"]
    with serving(
        "--procfs", str(tmp_path), "--port", str(port), engine=("--engine", "core"), prefix=container
    ) as daemon:
        (entry,) = daemon.ports()
        assert entry["pid"] == os.getpid()
        assert daemon.who(port)["ancestry"][-1]["pid"] == os.getpid()
