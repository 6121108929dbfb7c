"""Facts about this machine that the kernel shows without BPF."""
