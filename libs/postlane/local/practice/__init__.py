"""The practice SMTP server: an independent witness that accepts mail, keeps its own ledger, and misbehaves on order.

It shares no code with the sender. Run it with `python -m postlane.local.practice`, embed it with `PracticeServer`,
start it as a process with `PracticeProcess`, and steer it with `PracticeControl`. More in docs/practice-smtp.md.
"""

from postlane.local.practice.client import ControlError, LedgerEntry, PracticeControl
from postlane.local.practice.process import PracticeProcess

__all__ = ["ControlError", "LedgerEntry", "PracticeControl", "PracticeProcess"]
