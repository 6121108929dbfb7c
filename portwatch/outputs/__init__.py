"""What becomes of events in the daemon: log, metrics, journal."""
