"""Parts of the throughput benchmark."""
