"""The deterministic simulation: the real router and senders in one process, over the log in memory, in virtual time.

`python -m tests.simulation --seeds 1-200`, or `--seed 7 --trace`; one seed gives the same bytes each time.
"""
