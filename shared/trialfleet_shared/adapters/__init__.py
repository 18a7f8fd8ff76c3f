"""Adapters that coordinator and workers both need."""
