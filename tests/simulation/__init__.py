"""Deterministic simulation of a study with everything around it failing; see docs/simulation.md."""
