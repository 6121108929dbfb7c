"""Find the sockets that are open now, and the processes that hold them."""
