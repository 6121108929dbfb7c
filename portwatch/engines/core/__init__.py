"""The engine on BPF programs that were compiled when the package was built."""
