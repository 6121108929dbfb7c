"""Look up a port, wait for a port, and signal the processes that hold a port."""
