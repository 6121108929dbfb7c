"""The per-port metric series: labels, the shared series of ephemeral ports, opening times, and the limit."""

from dataclasses import replace

import pytest
from fake_engine import PROCESS
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from scrapes import OPENMETRICS, Scrape, listener, scrape_data, series_options

from portwatch.outputs.metrics import Tally, exposition
from portwatch.outputs.port_series import EPHEMERAL, ephemeral_ports, gather


def test_the_labels_of_a_port_are_its_address_and_the_process_that_opened_it():
    other = replace(PROCESS, pid=11, process="worker")
    opener = replace(PROCESS, container="4f1e")
    scrape = Scrape(scrape_data(replace(listener(opener=opener), holders=(other,))))
    assert scrape.labels("portwatch_listening_port") == [
        {"proto": "tcp", "address": "127.0.0.1", "port": "8080", "process": "nginx", "container": "4f1e"}
    ]


def test_pid_is_a_label_if_that_option_is_set():
    (labels,) = Scrape(scrape_data(listener(), pid=True)).labels("portwatch_listening_port")
    assert labels["pid"] == "10"


def test_if_the_opener_is_unknown_its_labels_are_empty():
    (labels,) = Scrape(scrape_data(listener(opener=None), pid=True)).labels("portwatch_listening_port")
    assert (labels["process"], labels["container"], labels["pid"]) == ("", "", "")


def test_ephemeral_ports_share_one_series():
    scrape = Scrape(
        scrape_data(listener(1, 40_000), listener(2, 40_001), listener(3, 80), ephemeral=range(32_768, 61_000))
    )
    assert [labels["port"] for labels in scrape.labels("portwatch_listening_port")] == [EPHEMERAL, "80"]
    assert scrape.value("portwatch_series_dropped_total") == 0


def test_an_expected_ephemeral_port_has_its_own_series():
    scrape = Scrape(
        scrape_data(
            listener(1, 40_000),
            listener(2, 40_000, proto="udp"),
            ephemeral=range(32_768, 61_000),
            expected=[("tcp", 40_000)],
        )
    )
    assert [(labels["proto"], labels["port"]) for labels in scrape.labels("portwatch_listening_port")] == [
        ("tcp", "40000"),
        ("udp", EPHEMERAL),
    ]


def test_the_range_of_ephemeral_ports_includes_both_ends():
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first, last = map(int, file.read().split())
    ports = ephemeral_ports()
    assert (first in ports, last in ports, last + 1 in ports) == (True, True, False)


@pytest.mark.parametrize(
    ("opened", "earliest"), [((5, 3, 4), 3), ((None, 3), 3), ((3, None), 3), ((None, None), None), ((0, 3), 0)]
)
def test_sockets_with_equal_labels_share_a_series_that_has_the_earliest_known_opening_time(opened, earliest):
    listeners = [listener(number, opened=time, netns=number) for number, time in enumerate(opened)]
    assert list(gather(listeners, series_options()).series.values()) == [earliest]


def test_the_opening_time_is_in_seconds_and_absent_if_it_is_unknown():
    scrape = Scrape(scrape_data(listener(1, 80, opened=1_795_499_214_123_456_789), listener(2, 81)))
    name = "portwatch_listening_port_opened_timestamp_seconds"
    assert scrape.values(name, "port") == {"80": pytest.approx(1_795_499_214.123456789, abs=1e-6)}
    assert set(scrape.values("portwatch_listening_port", "port")) == {"80", "81"}


def test_above_the_limit_the_first_series_are_kept_and_the_others_are_counted_as_dropped():
    tally = Tally()
    data = scrape_data(*(listener(port, port) for port in (5, 4, 3, 2, 1)), max_series=2)
    for scrapes in (1, 2):
        scrape = Scrape(data, tally)
        assert set(scrape.values("portwatch_listening_port", "port")) == {"5", "4"}
        assert scrape.value("portwatch_series_dropped_total") == 3 * scrapes


def test_a_dropped_series_with_two_sockets_is_counted_once():
    ports = gather([listener(1, 80), listener(2, 81), listener(3, 81)], series_options(max_series=1))
    assert len(ports.left_out) == 1


@pytest.mark.parametrize("name", ['a"b\n\\', '\\n"', '",x="y', "\\", "é\u2028\t{}"])
@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_special_characters_in_a_process_name_are_escaped(name, accept, parse):
    text, _ = exposition(scrape_data(listener(opener=replace(PROCESS, process=name))), Tally(), accept)
    families = {family.name: family for family in parse(text.decode())}
    (sample,) = families["portwatch_listening_port"].samples
    assert sample.labels["process"] == name
