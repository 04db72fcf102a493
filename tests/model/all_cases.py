"""Every case of every model."""

from __future__ import annotations

from . import cases_others, cases_sender
from .cases import Case

CASES: tuple[Case, ...] = (
    *cases_sender.AS_DESIGNED,
    *cases_sender.SWITCHED_OFF,
    *cases_others.ROUTER,
    *cases_others.LEDGER,
    *cases_others.REPLAY,
)
