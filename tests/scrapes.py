"""Helpers for the tests of the metrics, which make the data for a scrape and parse its text."""

from dataclasses import replace

from fake_engine import PROCESS
from fake_engine import socket as fake_socket
from prometheus_client.parser import text_string_to_metric_families as parse_text

from portwatch.event import Listener
from portwatch.outputs.metrics import ScrapeData, Tally, exposition
from portwatch.outputs.port_series import SeriesOptions
from portwatch.watch.counts import Counts

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def listener(number=1, port=8080, opener=PROCESS, opened=None, **fields):
    socket = replace(fake_socket(number, port), **fields)
    return Listener("event", opened, socket, 1, opener, (opener,) if opener else ())


def series_options(*, pid=False, ephemeral=range(0), expected=(), max_series=100):
    return SeriesOptions(pid, ephemeral, expected, max_series)


def scrape_data(*listeners, lost=None, counts=None, engine=None, **options):
    return ScrapeData(
        listeners=listeners,
        series_options=series_options(**options),
        engine=engine or {},
        counts=counts or Counts(),
        lost=lost or {},
        subscribers=0,
    )


class Scrape:
    """A scrape, parsed as Prometheus does."""

    def __init__(self, data, tally=None):
        self.text, self.content_type = exposition(data, tally or Tally(), "")
        self.samples = [sample for family in parse_text(self.text.decode()) for sample in family.samples]

    def labels(self, name):
        return [sample.labels for sample in self.samples if sample.name == name]

    def value(self, name, **labels):
        (value,) = [sample.value for sample in self.samples if sample.name == name and sample.labels == labels]
        return value

    def values(self, name, label):
        return {sample.labels[label]: sample.value for sample in self.samples if sample.name == name}
