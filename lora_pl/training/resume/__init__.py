"""What makes a run resumable, bit for bit."""
