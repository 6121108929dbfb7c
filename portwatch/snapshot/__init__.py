"""What is open now, and which processes hold it."""
