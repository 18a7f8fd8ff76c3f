"""Parts of `benchmarks/yahpo.py`."""
