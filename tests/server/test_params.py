"""Wrong query parameters are refused. The error says how to correct them."""

import pytest


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/api/v0/listening-ports?prot=tcp", "did you mean 'proto'?"),
        ("/api/v0/listening-ports?min_port=high", "not a number from 0 to 65535"),
        ("/api/v0/listening-ports?ignore=ssh", "'ssh' is not a port"),
        ("/api/v0/listening-ports?pid=99999999", "'99999999' is not a pid"),
        ("/api/v0/events?after=-1", "is not a number"),
        ("/api/v0/who", "port is missing"),
        ("/healthz?x=1", "unknown parameter 'x'"),
    ],
)
def test_a_wrong_parameter_is_refused_with_a_hint(daemon, path, text):
    status, _, body = daemon.request(path)
    assert status == 400
    assert set(body) == {"message", "detail"}
    assert text in f"{body['message']} {body['detail']}"


@pytest.mark.parametrize("name", ["nosuch", "/proc/1/ns/net", ""])
def test_a_path_or_an_unknown_name_as_netns_is_not_found(daemon, name):
    status, _, body = daemon.request(f"/api/v0/listening-ports?netns={name}")
    assert (status, body["message"]) == (404, f"there is no network namespace named {name!r}")
