"""The daemon and its HTTP interface.

- To add a route, write a module in `routes/`, list it in `routes/__init__.py`, and describe it in
  `static/openapi.json`.
- To add a query parameter, change `params.py` if several routes take it, otherwise the module of the route.
- To add an output, which is a function that receives every event, append it to `outputs` in `Daemon._serve`.
- To add a metric or a label, see `portwatch/outputs`. `DaemonState.scrape` reads its value.
"""
