"""The engine whose BPF programs bcc compiles when the engine starts."""
