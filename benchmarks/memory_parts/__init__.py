"""What the memory benchmark runs in processes of its own."""
