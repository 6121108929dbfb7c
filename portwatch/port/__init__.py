"""Questions about one port: who has it, wait for it, free it."""
