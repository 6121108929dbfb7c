"""Events, listeners and ports as text for people."""
