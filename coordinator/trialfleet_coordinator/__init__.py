"""The coordinator: decides what is evaluated next, and records what came of it."""
