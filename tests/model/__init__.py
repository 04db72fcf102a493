"""Explicit-state models of Postlane's protocols: every interleaving of a small world, with a budget of faults.

`python -m tests.model` runs them; `docs/model.md` says what they cover and what they found.
"""
