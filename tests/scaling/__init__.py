"""Scaling with real processes, each standing for a pod: `make scale-test`."""
