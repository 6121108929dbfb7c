"""The daemon and its HTTP interface.

Where to add what:

- a route: a module in `routes/`, listed in `routes/__init__.py`, described in `static/openapi.json`
- a query parameter: `params.py` if several routes take it, else the route's module
- an output, which receives every event: `Daemon._serve` in `daemon.py`
- a metric or a label: `portwatch/outputs`, and `DaemonState.scrape` in `state.py` for its value
"""
