"""Parts of `savings.py`."""
