"""Outputs of the daemon, which receive every event: log, metrics, journal.

To add a metric or label about a single port, change `port_series.py`. To add any other metric, change
`_DaemonMetrics.collect` in `metrics.py`. The value comes from `Tally`, which counts events, or from
`ScrapeData`, which is read at the scrape. Document every metric in `docs/metrics.md`. A test compares
that page with a scrape.
"""
