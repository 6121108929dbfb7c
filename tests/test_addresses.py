"""The exposure of an address: from which networks it can be reached."""

import pytest

from portwatch.addresses import exposure


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0", "all"),
        ("::", "all"),
        ("::ffff:0.0.0.0", "all"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("10.1.2.3", "private"),
        ("172.31.0.1", "private"),
        ("172.32.0.1", "public"),
        ("192.168.1.1", "private"),
        ("169.254.1.1", "private"),
        ("100.64.0.1", "private"),
        ("100.128.0.1", "public"),
        ("fd00::1", "private"),
        ("fe80::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("8.8.8.8", "public"),
        ("2001:db8::1", "public"),
    ],
)
def test_exposure_depends_on_the_range_that_the_address_is_in(address, expected):
    assert exposure(address) == expected
