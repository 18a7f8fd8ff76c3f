"""Samplers: how new points of the search space are drawn."""
