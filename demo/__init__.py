"""The demo: the main job of Postlane on real input, with a kill and an outage, and its books compared per id.

`make demo`, or `python -m demo [--recipients N] [--rate N] [--data-dir D]`. Read `__main__.py` first: it tells the
story; `people.py` makes the list, `system.py` runs the parts, `books.py` compares what they say.
"""
