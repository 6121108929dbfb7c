"""GET /api/v0/listening-ports."""

import os
import subprocess
import sys

import pytest


def numbers(entries):
    return {entry["port"] for entry in entries}


def test_an_entry_has_the_fields_network_and_process_name(daemon, listed_port):
    (entry,) = daemon.ports(f"?port={listed_port}")
    assert (entry["network"], entry["port"]) == ("tcp", listed_port)
    assert entry["process_name"] == entry["process"]
    assert entry["pid"] == os.getpid()
    assert [holder["pid"] for holder in entry["holders"]] == [os.getpid()]


@pytest.mark.parametrize(
    ("query", "is_listed"),
    [
        ("min_port={port}", True),
        ("min_port={above}", False),
        ("ignore=1,{port}", False),
        ("ignore=1", True),
        ("exposure=loopback", True),
        ("exposure=all&exposure=public", False),
        ("not_exposure=loopback", False),
        ("proto=udp", False),
        ("process=no*such", False),
        ("netns=self", True),
        ("netns=1", False),
    ],
)
def test_a_query_parameter_filters_the_listing(daemon, listed_port, query, is_listed):
    query = query.format(port=listed_port, above=listed_port + 1)
    assert (listed_port in numbers(daemon.ports(f"?{query}"))) == is_listed


@pytest.mark.parametrize("path", ["listening-ports?", "who?port={port}&"])
def test_pid_selects_the_ports_of_a_process_tree_and_not_pid_excludes_them(daemon, listed_port, path):
    path = "/api/v0/" + path.format(port=listed_port)

    def ports(query):
        return numbers(daemon.request(path + query)[2]["ports"])

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert listed_port in ports(f"pid={os.getpid()}")
        assert ports(f"pid={child.pid}") == set()
        assert listed_port not in ports(f"not_pid={os.getpid()}")
        assert listed_port in ports(f"not_pid={child.pid}")
        child.communicate(b"\n")
    status, _, body = daemon.request(f"{path}pid={child.pid}")
    assert (status, str(child.pid) in body["message"]) == (404, True)
