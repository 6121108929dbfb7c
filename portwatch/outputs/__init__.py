"""Outputs of the daemon, which receive every event: log, metrics, journal.

How to add

- a metric or label about a single port: change `port_series.py`
- any other metric: add it to `_DaemonMetrics.collect` in `metrics.py`. Its value comes from `Tally`, which
  counts events, or from `ScrapeData`, which is read at the scrape.

Document both in `docs/metrics.md`. A test compares that file with a scrape.
"""
