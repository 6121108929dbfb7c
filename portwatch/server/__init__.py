"""The daemon and its HTTP interface.

How to add

- a route: write a module in `routes/`, list it in `routes/__init__.py`, describe it in `static/openapi.json`
- a query parameter: add it to `params.py` if several routes take it, otherwise to the route's module
- an output, which is a function that receives every event: append it to `outputs` in `Daemon._serve`
- a metric or a label: see `portwatch/outputs`, and read its value in `DaemonState.scrape`
"""
