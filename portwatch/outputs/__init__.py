"""Outputs of the daemon, which receive every event: log, metrics, journal.

Where to add what:

- a metric or label about a single port: `port_series.py`
- any other metric: `_DaemonMetrics.collect` in `metrics.py`, from `Tally` (counted from events) or
  `ScrapeData` (read at the scrape)
- documentation of both: `docs/metrics.md`, which a test compares with a scrape
"""
