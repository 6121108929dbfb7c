"""The engine whose BPF programs are compiled when the package is built."""
