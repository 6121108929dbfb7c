"""Cgroups, containers, pid namespaces and named network namespaces, with real processes."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ENGINES, wait_until

from portwatch import Filter, Scope
from portwatch.engines.limits import SHORT_LIVED
from portwatch.linux.mounts import mounts

PORTWATCH = [sys.executable, "-m", "portwatch"]
IN_PID_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
CONTAINER_ID = "4f" * 32
SIMILAR_ID = f"{'4f' * 10}{'a5' * 22}"
DEFINE_LISTEN_AND_EXIT = """
def listen_and_exit(port):
    child = fork_child()
    if child == 0:
        listener(port=port)
        os._exit(0)
    os.waitpid(child, 0)
    return child
"""


def portwatch(*arguments, prefix=()):
    return subprocess.run([*prefix, *PORTWATCH, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def v1_container():
    """A container's cgroup in the cgroup v1 hierarchy of the memory controller."""
    mount = next(
        (mount.point for mount in mounts() if mount.kind == "cgroup" and mount.point.endswith("/memory")), None
    )
    if not mount:
        pytest.skip("no cgroup v1 memory controller is mounted")
    path = Path(mount) / f"docker-{CONTAINER_ID}.scope"
    path.mkdir()
    yield path
    for pid in (path / "cgroup.procs").read_text().split():
        (path.parent / "cgroup.procs").write_text(pid)
    path.rmdir()


@pytest.fixture
def netns_name():
    """The name of a network namespace made by `ip netns add`."""
    name = f"portwatch-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def test_events_of_a_short_lived_process_have_its_cgroup_and_container(watch, actor, make_cgroup):
    path = make_cgroup(f"docker-{CONTAINER_ID}.scope", actor)
    actor.do(DEFINE_LISTEN_AND_EXIT)
    pids = [actor.do(f"listen_and_exit({port})") for port in range(8000, 8100)]
    events = watch.events(actor)
    if SHORT_LIVED in watch.info.limits:
        assert len(events) < 2 * len(pids)
        return
    assert [(event.kind, event.pid) for event in events] == [
        (kind, pid) for pid in pids for kind in ("open", "close")
    ]
    assert {(event.cgroup, event.container) for event in events} == {(f"/{path.name}", CONTAINER_ID)}


def test_events_of_a_short_lived_process_have_the_container_of_its_cgroup_v1(watch, actor, v1_container):
    if SHORT_LIVED in watch.info.limits:
        pytest.skip("this engine does not see short-lived listeners")
    (v1_container / "cgroup.procs").write_text(str(actor.pid))
    actor.do(DEFINE_LISTEN_AND_EXIT)
    pids = [actor.do(f"listen_and_exit({port})") for port in range(8000, 8020)]
    assert [(event.pid, event.container) for event in watch.events(actor)] == [
        (pid, CONTAINER_ID) for pid in pids for _ in ("open", "close")
    ]


def test_after_a_process_is_moved_into_a_container_its_events_have_that_container(watch, actor, v1_container):
    actor.do("a = listener(port=8080)")
    assert [event.container for event in watch.events(actor)] == [None]
    (v1_container / "cgroup.procs").write_text(str(actor.pid))
    actor.do("b = listener(port=8081)")
    assert [event.container for event in watch.events(actor)] == [None, CONTAINER_ID]


def test_an_event_from_a_pod_has_the_uid_of_the_pod(watch, actor, make_cgroup):
    uid = "2b5b8b1c-3f0e-4d5e-9a7b-0c1d2e3f4a5b"
    make_cgroup(f"kubepods-pod{uid.replace('-', '_')}.slice", actor)
    actor.do("s = listener()")
    (event,) = watch.events(actor)
    assert (event.pod, event.container) == (uid, None)


def test_a_scope_can_include_or_exclude_the_events_of_a_cgroup_or_container(watch, make_actor, make_cgroup):
    inside, outside = make_actor(), make_actor()
    path = make_cgroup(f"docker-{CONTAINER_ID}.scope", inside)
    scopes = {
        "cgroup": Scope(cgroup=Filter((f"/{path.name}",))),
        "container": Scope(container=Filter((CONTAINER_ID[:7],))),
        "not cgroup": Scope(cgroup=Filter((), (f"/{path.name}",))),
        "not container": Scope(container=Filter((), (CONTAINER_ID,))),
    }
    watchers = {name: watch.start_another(scope=scope, snapshot=False) for name, scope in scopes.items()}
    try:
        for actor in (inside, outside):
            actor.do("s = listener(port=8080); s.close(); s = listener(port=8081)")
        wait_until(
            lambda: len(watch.events(inside, outside)) >= (2 if SHORT_LIVED in watch.info.limits else 6),
            "the events of both actors",
        )
        for name, watcher in watchers.items():
            expected = outside if name.startswith("not") else inside
            wait_until(lambda watcher=watcher: any(event.port == 8081 for event in watcher.delivered), name)
            reported = [
                actor for actor in (inside, outside) if any(actor.owns(event) for event in watcher.delivered)
            ]
            assert reported == [expected], name
            assert [actor for actor in (inside, outside) if watcher.listeners(actor)] == [expected], name
    finally:
        for watcher in watchers.values():
            watcher.stop()


def test_list_accepts_cgroups_by_path_or_name_and_containers_by_id_prefix(make_actor, make_cgroup):
    inside = make_actor()
    path = make_cgroup(f"docker-{CONTAINER_ID}.scope", inside)
    inside.do("s = listener(port=8080)")
    for option in (["--cgroup", str(path)], ["--cgroup", path.name], ["--container", CONTAINER_ID[:12]]):
        result = portwatch("list", "--json", *option)
        assert [json.loads(line)["pid"] for line in result.stdout.splitlines()] == [inside.pid], option
        name, value = option
        result = portwatch("list", "--json", name.replace("--", "--not-"), value)
        assert result.returncode == 0
        assert inside.pid not in [json.loads(line)["pid"] for line in result.stdout.splitlines()]


def test_wait_and_kill_look_for_a_port_in_the_namespaces_of_the_given_processes(make_actor, make_cgroup):
    inside = make_actor()
    path = make_cgroup(f"docker-{CONTAINER_ID}.scope", inside)
    inside.do("s = listener(port=18080)")
    assert portwatch("wait", "18080", "--timeout", "0").returncode == 124
    for option in (["--cgroup", path.name], ["--container", CONTAINER_ID[:12]], ["--pid", str(inside.pid)]):
        assert portwatch("wait", "18080", "--timeout", "0", *option).returncode == 0, option
        assert portwatch("wait", "18080", "--timeout", "0", "--netns", "self", *option).returncode == 124, (
            option
        )
        result = portwatch("kill", "18080", "--dry-run", *option)
        assert result.returncode == (1 if "--cgroup" in option else 0), option


def test_an_ambiguous_container_id_prefix_is_refused_with_the_candidates(make_actor, make_cgroup):
    for name in (CONTAINER_ID, SIMILAR_ID):
        make_cgroup(f"docker-{name}.scope", make_actor())
    result = portwatch("list", "--container", CONTAINER_ID[:20])
    assert result.returncode == 2
    assert CONTAINER_ID[:24] in result.stderr
    assert SIMILAR_ID[:24] in result.stderr
    assert portwatch("list", "--container", CONTAINER_ID[:21]).returncode == 0


def test_a_namespace_has_the_name_that_ip_netns_gave_it(watch, make_actor, netns_name):
    actor = make_actor(f"/run/netns/{netns_name}")
    actor.do("s = listener(port=8080)")
    (event,) = watch.events(actor)
    assert event.netns_name == netns_name
    (listener,) = watch.listeners(actor)
    assert listener.socket.netns_name == netns_name
    for option in (["--netns", netns_name], ["--netns", f"/run/netns/{netns_name},{actor.namespace}"]):
        result = portwatch("list", "--json", *option)
        assert [json.loads(line)["netns_name"] for line in result.stdout.splitlines()] == [netns_name]
    assert f" in namespace {netns_name}" in portwatch("list", "--netns", netns_name).stdout
    others = portwatch("list", "--json", "--not-netns", netns_name).stdout.splitlines()
    assert netns_name not in [json.loads(line)["netns_name"] for line in others]


def test_events_have_the_name_of_their_namespace_only_while_ip_netns_lists_it(watch, make_actor):
    name = f"portwatch-again-{os.getpid()}"
    inodes = set()
    for _ in range(3):
        actor = make_actor()
        actor.do("s = listener(port=8080)")
        assert watch.events(actor)[-1].netns_name is None
        subprocess.run(["ip", "netns", "attach", name, str(actor.pid)], check=True)
        try:
            wait_until(
                lambda actor=actor: _name_of_a_new_listener(watch, actor) == name, "an event with the name"
            )
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=True)
        wait_until(
            lambda actor=actor: _name_of_a_new_listener(watch, actor) is None, "an event without the name"
        )
        inodes.add(actor.netns)
    assert len(inodes) == 3


def _name_of_a_new_listener(watch, actor):
    actor.do("t = listener(); t.close(); t = listener()")
    return watch.events(actor)[-1].netns_name


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "poll"])
def test_in_a_pid_namespace_details_are_never_read_from_another_process(
    engine, make_actor, make_cgroup, netns_name, tmp_path
):
    """In a pid namespace, holders are unknown unless --procfs names the host's /proc.

    BPF programs report the host's pids. In the /proc of a pid namespace, these pids belong to other processes.
    """
    actor = make_actor(f"/run/netns/{netns_name}")
    path = make_cgroup(f"docker-{CONTAINER_ID}.scope", actor)
    actor.do("s = listener(port=8080)")
    with_host_procfs = ["unshare", "--mount", "sh", "-c", f'mount --bind /proc {tmp_path} && exec "$@"', "sh"]
    name, _, hooks = engine.partition("-")
    tail = [*PORTWATCH, "tail", "--json", "--engine", name, "--netns", netns_name]
    tail += ["--hooks", hooks] if hooks else []
    for options, holder_pid in ([], None), (["--procfs", str(tmp_path)], actor.pid):
        with subprocess.Popen(
            [*with_host_procfs, *IN_PID_NAMESPACE, *tail, *options], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                before = json.loads(process.stdout.readline())
                actor.do("t = listener(port=8081)")
                opened = json.loads(process.stdout.readline())
                actor.do("t.close()")
                closed = json.loads(process.stdout.readline())
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
        assert (before["port"], before["pid"]) == (8080, holder_pid)
        for event in (opened, closed):
            assert (event["pid"], event["process"]) == (actor.pid, actor.process)
            assert (event["cgroup"], event["container"]) == (f"/{path.name}", CONTAINER_ID)
            assert event["netns_name"] == netns_name


def test_with_the_hosts_procfs_a_name_added_after_the_container_started_is_reported(
    make_actor, tmp_path, request
):
    command = ["unshare", "--mount", "sh", "-c", f'mount --bind /proc {tmp_path} && exec "$@"', "sh"]
    command += [
        *IN_PID_NAMESPACE,
        *PORTWATCH,
        "tail",
        "--json",
        "--port",
        "8123,8124",
        "--procfs",
        str(tmp_path),
    ]
    make_actor().do("s = listener(port=8123)")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        try:
            assert json.loads(tail.stdout.readline())["netns_name"] is None
            name = request.getfixturevalue("netns_name")
            make_actor(f"/run/netns/{name}").do("s = listener(port=8124)")
            assert json.loads(tail.stdout.readline())["netns_name"] == name
        finally:
            tail.terminate()


def test_poll_in_a_pid_namespace_reports_the_pids_of_that_namespace():
    script = "import os, socket, subprocess, sys; s = socket.create_server(('127.0.0.1', 0));"
    script += "port = str(s.getsockname()[1]); print(os.getpid(), flush=True);"
    script += "subprocess.run([*sys.argv[1:], 'list', '--json', '--engine', 'poll', '--port', port])"
    command = ["unshare", "--net", *IN_PID_NAMESPACE, "sh", "-c", 'ip link set lo up; "$@"; exit', "sh"]
    command += [sys.executable, "-c", script, *PORTWATCH]
    pid, line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(line)["pid"] == int(pid)


@pytest.mark.parametrize("command", [("list",), ("who", "1")])
def test_watching_a_process_tree_from_a_pid_namespace_is_an_error(command):
    if not any(engine.startswith("core") for engine in ENGINES):
        pytest.skip("core is not one of PORTWATCH_TEST_ENGINES")
    result = portwatch(*command, "--pid", "1", "--engine", "core", prefix=IN_PID_NAMESPACE)
    assert (result.returncode, result.stdout) == (1, "")
    assert "process trees cannot be watched from a private pid namespace" in result.stderr
