"""Facts about this machine, as the kernel shows them: no BPF, and nothing that portwatch itself keeps."""
