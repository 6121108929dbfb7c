"""The engine on BPF programs that bcc compiles when it starts."""
