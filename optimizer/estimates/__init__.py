"""What a candidate would need and how fast it would be, before anything is run."""
