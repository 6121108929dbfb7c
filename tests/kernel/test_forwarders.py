"""Processes that hold a port and forward it, such as docker-proxy."""

import pytest
from port_commands import run

from portwatch import list_listeners
from portwatch.model import Process
from portwatch.port.forwarders import forwarder_of


def test_a_forwarder_is_told_with_whom_it_forwards_to(actor, make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', '172.30.99.2/32', 'dev', 'lo'); s = listener('172.30.99.2', 80)")
    actor.do(
        'code = \'import socket, sys; s = socket.create_server(("127.0.0.1", 8080)); '
        "print(flush=True); sys.stdin.read()'"
    )
    actor.do(
        "p = subprocess.Popen(['docker-proxy', '-c', code, '-proto', 'tcp', '-container-ip', '172.30.99.2', "
        "'-container-port', '80'], executable=sys.executable, stdin=-1, stdout=-1); p.stdout.readline()"
    )
    for command in (("who", "8080"), ("kill", "8080", "--dry-run")):
        result = run(command[0], actor, *command[1:])
        assert (
            f"only forwards to 172.30.99.2:80, where {inside.process} ({inside.pid}) listens" in result.stdout
        )
        assert "docker stop" in result.stdout
    actor.do("p.kill(); p.wait()")


def behind(address, port=80):
    command = ("docker-proxy", "-proto", "tcp", "-container-ip", address, "-container-port", str(port))
    return forwarder_of(Process(1, 1, "docker-proxy", 0), command, list_listeners())


def test_of_several_namespaces_with_the_address_the_one_where_somebody_listens_is_behind(make_actor):
    first, second = make_actor(), make_actor()
    for one in (first, second):
        one.do("ip('addr', 'add', '172.30.99.4/32', 'dev', 'lo')")
    assert behind("172.30.99.4").listeners == ()
    second.do("s = listener('172.30.99.4', 80)")
    assert [one.pid for one in behind("172.30.99.4").listeners] == [second.pid]
    first.do("s = listener('172.30.99.4', 80)")
    unknown = behind("172.30.99.4")
    assert (unknown.listeners, unknown.container) == ((), None)
    assert "docker ps" in unknown.advice


def test_an_ipv6_address_is_found_like_an_ipv4_one(make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', 'fd00:99::2/128', 'dev', 'lo'); s = listener('fd00:99::2', 80, family=V6)")
    found = behind("fd00:99::2")
    assert (found.target, [one.pid for one in found.listeners]) == ("[fd00:99::2]:80", [inside.pid])


@pytest.mark.parametrize(
    ("called", "advice"),
    [
        ("rootlesskit", "ending it ends every container"),
        ("pasta.avx2", "podman stop"),
        ("pasta", "podman stop"),
    ],
)
def test_forwarders_without_root_are_known(called, advice):
    assert advice in forwarder_of(Process(1, 1, called, 0), None, []).advice


def test_the_container_behind_a_docker_proxy_is_named(make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', '172.30.99.3/32', 'dev', 'lo'); s = listener('172.30.99.3', 80)")
    behind = Process(inside.pid, inside.start_time, inside.process, 0, container="ab" * 32)
    (listener,) = [one for one in list_listeners() if one.socket.netns == inside.netns]
    object.__setattr__(listener, "holders", (behind,))
    command = ("/usr/bin/docker-proxy", "-proto", "tcp", "-host-port", "8080")
    command += ("-container-ip", "172.30.99.3", "-container-port", "80")
    found = forwarder_of(Process(1, 1, "docker-proxy", 0), command, [listener])
    assert (found.container, found.target) == ("ab" * 32, "172.30.99.3:80")
    assert found.advice == "docker stop abababababab"
