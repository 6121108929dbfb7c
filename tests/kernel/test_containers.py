"""Cgroups, containers, pid namespaces and names of network namespaces, of real processes."""

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
IN_A_PID_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
ID = "4f" * 32
TWIN = f"{'4f' * 10}{'a5' * 22}"
AT_ONCE = """
def at_once(port):
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
    """A container's cgroup in the memory controller's hierarchy of v1."""
    mount = next(
        (mount.point for mount in mounts() if mount.kind == "cgroup" and mount.point.endswith("/memory")), None
    )
    if not mount:
        pytest.skip("no memory controller of v1 is mounted")
    path = Path(mount) / f"docker-{ID}.scope"
    path.mkdir()
    yield path
    for pid in (path / "cgroup.procs").read_text().split():
        (path.parent / "cgroup.procs").write_text(pid)
    path.rmdir()


@pytest.fixture
def named():
    """A network namespace as `ip netns` makes them."""
    name = f"portwatch-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def test_who_lives_for_a_millisecond_has_its_cgroup_and_container(watch, actor, make_cgroup):
    path = make_cgroup(f"docker-{ID}.scope", actor)
    actor.do(AT_ONCE)
    pids = [actor.do(f"at_once({port})") for port in range(8000, 8100)]
    events = watch.events(actor)
    if SHORT_LIVED in watch.info.limits:
        assert len(events) < 2 * len(pids)
        return
    assert [(event.kind, event.pid) for event in events] == [
        (kind, pid) for pid in pids for kind in ("open", "close")
    ]
    assert {(event.cgroup, event.container) for event in events} == {(f"/{path.name}", ID)}


def test_who_lives_for_a_millisecond_on_a_v1_host_has_its_container(watch, actor, v1_container):
    if SHORT_LIVED in watch.info.limits:
        pytest.skip("limited here")
    (v1_container / "cgroup.procs").write_text(str(actor.pid))
    actor.do(AT_ONCE)
    pids = [actor.do(f"at_once({port})") for port in range(8000, 8020)]
    assert [(event.pid, event.container) for event in watch.events(actor)] == [
        (pid, ID) for pid in pids for _ in ("open", "close")
    ]


def test_who_is_moved_into_a_container_is_in_it_from_then_on(watch, actor, v1_container):
    actor.do("a = listener(port=8080)")
    assert [event.container for event in watch.events(actor)] == [None]
    (v1_container / "cgroup.procs").write_text(str(actor.pid))
    actor.do("b = listener(port=8081)")
    assert [event.container for event in watch.events(actor)] == [None, ID]


def test_a_pod_is_told_by_its_uid(watch, actor, make_cgroup):
    uid = "2b5b8b1c-3f0e-4d5e-9a7b-0c1d2e3f4a5b"
    make_cgroup(f"kubepods-pod{uid.replace('-', '_')}.slice", actor)
    actor.do("s = listener()")
    (event,) = watch.events(actor)
    assert (event.pod, event.container) == (uid, None)


def test_a_scope_tells_of_a_cgroup_or_a_container_and_of_no_other(watch, make_actor, make_cgroup):
    inside, outside = make_actor(), make_actor()
    path = make_cgroup(f"docker-{ID}.scope", inside)
    scopes = {
        "cgroup": Scope(cgroup=Filter((f"/{path.name}",))),
        "container": Scope(container=Filter((ID[:7],))),
        "not cgroup": Scope(cgroup=Filter((), (f"/{path.name}",))),
        "not container": Scope(container=Filter((), (ID,))),
    }
    watches = {name: watch.another(scope=scope, snapshot=False) for name, scope in scopes.items()}
    try:
        for actor in (inside, outside):
            actor.do("s = listener(port=8080); s.close(); s = listener(port=8081)")
        wait_until(
            lambda: len(watch.events(inside, outside)) >= (2 if SHORT_LIVED in watch.info.limits else 6),
            "",
        )
        for name, one in watches.items():
            wait_until(lambda one=one: [event for event in one._seen if event.port == 8081], name)
            told = {actor.netns for actor in (inside, outside) for event in one._seen if actor.owns(event)}
            assert told == {outside.netns if name.startswith("not") else inside.netns}, name
            listed = [actor for actor in (inside, outside) if one.listeners(actor)]
            assert listed == [outside if name.startswith("not") else inside], name
    finally:
        for one in watches.values():
            one.stop()


def test_list_takes_cgroups_and_containers_as_people_write_them(make_actor, make_cgroup):
    inside = make_actor()
    path = make_cgroup(f"docker-{ID}.scope", inside)
    inside.do("s = listener(port=8080)")
    for option in (["--cgroup", str(path)], ["--cgroup", path.name], ["--container", ID[:12]]):
        result = portwatch("list", "--json", *option)
        assert [json.loads(line)["pid"] for line in result.stdout.splitlines()] == [inside.pid], option
        (unwanted,) = (option[0].replace("--", "--not-"),)
        result = portwatch("list", "--json", unwanted, option[1])
        assert result.returncode == 0
        assert inside.pid not in [json.loads(line)["pid"] for line in result.stdout.splitlines()]


def test_one_port_of_who_was_asked_for_is_looked_for_where_they_are(make_actor, make_cgroup):
    inside = make_actor()
    path = make_cgroup(f"docker-{ID}.scope", inside)
    inside.do("s = listener(port=18080)")
    assert portwatch("wait", "18080", "--timeout", "0").returncode == 124
    for option in (["--cgroup", path.name], ["--container", ID[:12]], ["--pid", str(inside.pid)]):
        assert portwatch("wait", "18080", "--timeout", "0", *option).returncode == 0, option
        assert portwatch("wait", "18080", "--timeout", "0", "--netns", "self", *option).returncode == 124, (
            option
        )
        result = portwatch("kill", "18080", "--dry-run", *option)
        assert result.returncode == (1 if "--cgroup" in option else 0), option


def test_a_beginning_that_two_containers_have_is_refused_with_both(make_actor, make_cgroup):
    for name in (ID, TWIN):
        make_cgroup(f"docker-{name}.scope", make_actor())
    result = portwatch("list", "--container", ID[:20])
    assert result.returncode == 2
    assert ID[:24] in result.stderr
    assert TWIN[:24] in result.stderr
    assert portwatch("list", "--container", ID[:21]).returncode == 0


def test_a_namespace_is_called_as_ip_netns_calls_it(watch, make_actor, named):
    actor = make_actor(f"/run/netns/{named}")
    actor.do("s = listener(port=8080)")
    (event,) = watch.events(actor)
    assert event.netns_name == named
    (one,) = watch.listeners(actor)
    assert one.socket.netns_name == named
    for option in (["--netns", named], ["--netns", f"/run/netns/{named},{actor.namespace}"]):
        result = portwatch("list", "--json", *option)
        assert [json.loads(line)["netns_name"] for line in result.stdout.splitlines()] == [named]
    assert f" in namespace {named}" in portwatch("list", "--netns", named).stdout
    without = portwatch("list", "--json", "--not-netns", named).stdout.splitlines()
    assert named not in [json.loads(line)["netns_name"] for line in without]


def test_a_name_that_comes_and_goes_is_the_namespaces_of_the_moment(watch, make_actor):
    name = f"portwatch-again-{os.getpid()}"
    numbers = set()
    for _ in range(3):
        actor = make_actor()
        actor.do("s = listener(port=8080)")
        assert watch.events(actor)[-1].netns_name is None
        subprocess.run(["ip", "netns", "attach", name, str(actor.pid)], check=True)
        try:
            wait_until(lambda actor=actor: _name_of_a_new_listener(watch, actor) == name, "the name")
        finally:
            subprocess.run(["ip", "netns", "delete", name], check=True)
        wait_until(lambda actor=actor: _name_of_a_new_listener(watch, actor) is None, "no name")
        numbers.add(actor.netns)
    assert len(numbers) == 3


def _name_of_a_new_listener(watch, actor):
    actor.do("t = listener(); t.close(); t = listener()")
    return watch.events(actor)[-1].netns_name


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "poll"])
def test_in_a_pid_namespace_of_its_own_nobody_is_taken_for_another(
    engine, make_actor, make_cgroup, named, tmp_path
):
    """The pids of BPF mean others in that /proc: nothing is read of them; with the host's /proc, all is."""
    actor = make_actor(f"/run/netns/{named}")
    path = make_cgroup(f"docker-{ID}.scope", actor)
    actor.do("s = listener(port=8080)")
    hosts = ["unshare", "--mount", "sh", "-c", f'mount --bind /proc {tmp_path} && exec "$@"', "sh"]
    name, _, hooks = engine.partition("-")
    tail = [*PORTWATCH, "tail", "--json", "--engine", name, "--netns", named]
    tail += ["--hooks", hooks] if hooks else []
    for options, known in ([], None), (["--procfs", str(tmp_path)], actor.pid):
        with subprocess.Popen(
            [*hosts, *IN_A_PID_NAMESPACE, *tail, *options], stdout=subprocess.PIPE, text=True
        ) as it:
            try:
                before = json.loads(it.stdout.readline())
                actor.do("t = listener(port=8081)")
                opened = json.loads(it.stdout.readline())
                actor.do("t.close()")
                closed = json.loads(it.stdout.readline())
            finally:
                with contextlib.suppress(ProcessLookupError):
                    it.terminate()
        assert (before["port"], before["pid"]) == (8080, known)
        for event in (opened, closed):
            assert (event["pid"], event["process"]) == (actor.pid, actor.process)
            assert (event["cgroup"], event["container"]) == (f"/{path.name}", ID)
            assert event["netns_name"] == named


def test_a_name_that_is_given_after_the_container_has_begun_is_known_by_the_hosts_procfs(
    make_actor, tmp_path, request
):
    command = ["unshare", "--mount", "sh", "-c", f'mount --bind /proc {tmp_path} && exec "$@"', "sh"]
    command += [
        *IN_A_PID_NAMESPACE,
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
            name = request.getfixturevalue("named")
            make_actor(f"/run/netns/{name}").do("s = listener(port=8124)")
            assert json.loads(tail.stdout.readline())["netns_name"] == name
        finally:
            tail.terminate()


def test_poll_in_a_pid_namespace_tells_the_pids_of_its_proc():
    script = "import os, socket, subprocess, sys; s = socket.create_server(('127.0.0.1', 0));"
    script += "port = str(s.getsockname()[1]); print(os.getpid(), flush=True);"
    script += "subprocess.run([*sys.argv[1:], 'list', '--json', '--engine', 'poll', '--port', port])"
    command = ["unshare", "--net", *IN_A_PID_NAMESPACE, "sh", "-c", 'ip link set lo up; "$@"; exit', "sh"]
    command += [sys.executable, "-c", script, *PORTWATCH]
    pid, line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(line)["pid"] == int(pid)


@pytest.mark.parametrize("command", [("list",), ("who", "1")])
def test_in_a_pid_namespace_nobody_says_what_a_tree_has_whose_pids_it_cannot_know(command):
    if not any(engine.startswith("core") for engine in ENGINES):
        pytest.skip("core is not one of PORTWATCH_TEST_ENGINES")
    result = portwatch(*command, "--pid", "1", "--engine", "core", prefix=IN_A_PID_NAMESPACE)
    assert (result.returncode, result.stdout) == (1, "")
    assert "process trees cannot be watched from a private pid namespace" in result.stderr
