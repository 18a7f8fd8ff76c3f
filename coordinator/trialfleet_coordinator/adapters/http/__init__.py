"""The coordinator over HTTP: an API by version, what operators' tools ask for, and a page for people."""
