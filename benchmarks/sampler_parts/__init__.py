"""Parts of `sampler_quality.py`."""
