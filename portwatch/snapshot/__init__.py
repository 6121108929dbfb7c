"""What is open now, and who holds it."""
