"""Questions about one port: look it up, wait for it, signal its holders."""
