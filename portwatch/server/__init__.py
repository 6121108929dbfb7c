"""The daemon and its HTTP interface."""
