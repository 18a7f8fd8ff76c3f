"""The workers: evaluate what they are told to, and say what came of it."""
