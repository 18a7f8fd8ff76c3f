"""Where the workers touch the outside world."""
