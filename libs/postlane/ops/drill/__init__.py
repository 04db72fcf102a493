"""Fault drills: a fault is injected under load, and checkers of their own say what came of every mail.

`load` publishes, `account` is what topics and the witness say of each delivery, `checkers` are the promises, `follow`
keeps an account up to date; they know nothing of what is being drilled and serve every harness. `scenarios` are the
faults, `run` plays one, `verdict` judges it, `report` writes it down.
"""
