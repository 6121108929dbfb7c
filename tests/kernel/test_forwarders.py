"""Processes that hold a port only to forward its connections, such as docker-proxy."""

from dataclasses import replace

import pytest
from port_commands import run

from portwatch import list_listeners
from portwatch.model import Process
from portwatch.port.forwarders import forwarder_of


def test_who_and_kill_print_the_target_of_a_docker_proxy(actor, make_actor):
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
    for command, *arguments in (("who", "8080"), ("kill", "8080", "--dry-run")):
        result = run(command, actor, *arguments)
        assert (
            f"only forwards to 172.30.99.2:80, where {inside.process} ({inside.pid}) listens" in result.stdout
        )
        assert "docker stop" in result.stdout
    actor.do("p.kill(); p.wait()")


def forwarder_to(address, port=80):
    command = ("docker-proxy", "-proto", "tcp", "-container-ip", address, "-container-port", str(port))
    return forwarder_of(Process(1, 1, "docker-proxy", 0), command, list_listeners())


def test_the_target_is_found_if_only_one_namespace_has_its_address_and_a_listener(make_actor):
    first, second = make_actor(), make_actor()
    for actor in (first, second):
        actor.do("ip('addr', 'add', '172.30.99.4/32', 'dev', 'lo')")
    assert forwarder_to("172.30.99.4").listeners == ()
    second.do("s = listener('172.30.99.4', 80)")
    assert [process.pid for process in forwarder_to("172.30.99.4").listeners] == [second.pid]
    first.do("s = listener('172.30.99.4', 80)")
    ambiguous = forwarder_to("172.30.99.4")
    assert (ambiguous.listeners, ambiguous.container) == ((), None)
    assert "docker ps" in ambiguous.advice


def test_the_target_can_have_an_ipv6_address(make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', 'fd00:99::2/128', 'dev', 'lo'); s = listener('fd00:99::2', 80, family=V6)")
    forwarder = forwarder_to("fd00:99::2")
    assert forwarder.target == "[fd00:99::2]:80"
    assert [process.pid for process in forwarder.listeners] == [inside.pid]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("rootlesskit", "ending it ends every container"),
        ("pasta.avx2", "podman stop"),
        ("pasta", "podman stop"),
    ],
)
def test_rootless_forwarders_are_recognized_by_name(name, advice):
    assert advice in forwarder_of(Process(1, 1, name, 0), None, []).advice


def test_the_container_behind_a_docker_proxy_is_named(make_actor):
    inside = make_actor()
    inside.do("ip('addr', 'add', '172.30.99.3/32', 'dev', 'lo'); s = listener('172.30.99.3', 80)")
    holder = Process(inside.pid, inside.start_time, inside.process, 0, container="ab" * 32)
    (listener,) = [
        replace(listener, holders=(holder,)) for listener in list_listeners() if listener.netns == inside.netns
    ]
    command = ("/usr/bin/docker-proxy", "-proto", "tcp", "-host-port", "8080")
    command += ("-container-ip", "172.30.99.3", "-container-port", "80")
    forwarder = forwarder_of(Process(1, 1, "docker-proxy", 0), command, [listener])
    assert (forwarder.container, forwarder.target) == ("ab" * 32, "172.30.99.3:80")
    assert forwarder.advice == "docker stop abababababab"
