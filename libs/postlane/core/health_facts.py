"""What senders say of providers once a second (`mail.observations`), and what the fleet's health says (`mail.health`).

Advisory: no mail depends on them. Both are bounded, so that no flood of domains makes a record, a window or a metric
grow. Counts are of results of SMTP attempts, never of mails that wait.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from postlane.core.breaker import BreakerState
from postlane.core.events import Fact
from postlane.core.health_sketch import BUCKETS_MAX
from postlane.core.health_state import HealthState

DOMAINS_MAX = 64  # named in one record; what else there was is in OTHER
OTHER = "other"
_COUNT_MAX = 1_000_000_000
_Count = Annotated[int, Field(ge=0, le=_COUNT_MAX)]
_Name = Annotated[str, Field(min_length=1, max_length=255)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Tally(Fact):
    """How results of attempts were, and how long answers took (`answer_s`: a sketch, see health_sketch).

    `delivered`; `bounced`: refused because of recipient, mailbox or content, which a working provider does;
    `deferred`: not now; `throttled`: slower; `blocked`: refused by policy or reputation; `failed`: the provider or its
    network is at fault, or the connection was lost after the dot; `unreached`: sessions that could not be opened or
    were lost, which no domain has a share in.
    """

    delivered: _Count = 0
    bounced: _Count = 0
    deferred: _Count = 0
    throttled: _Count = 0
    blocked: _Count = 0
    failed: _Count = 0
    unreached: _Count = 0
    answer_s: Annotated[
        tuple[tuple[Annotated[int, Field(ge=0, le=BUCKETS_MAX)], _Count], ...], Field(max_length=BUCKETS_MAX + 1)
    ] = ()


class Observed(Fact):
    """Written by a sender, once a second and only when there is something to say (key: the provider).

    `total` is of all lanes of the process since its last record, `domains` by recipient domain. `breaker` is how the
    process stands to the provider (the most shut of its lanes), `oldest_wait_s` how long the oldest mail has waited
    for the reply to its dot.
    """

    provider: _Name
    instance: _Name
    at: AwareDatetime
    breaker: BreakerState = BreakerState.CLOSED
    oldest_wait_s: _Seconds = 0.0
    total: Tally = Tally()
    domains: Annotated[dict[_Name, Tally], Field(max_length=DOMAINS_MAX + 1)] = Field(default_factory=dict)


class Figures(Fact):
    """One provider, or one of its recipient domains, over the window. Answer times in seconds, None of none."""

    state: HealthState = HealthState.UNKNOWN
    reason: str = ""
    delivered: int = 0
    bounced: int = 0
    deferred: int = 0
    throttled: int = 0
    blocked: int = 0
    failed: int = 0
    unreached: int = 0
    answer_p50_s: float | None = None
    answer_p95_s: float | None = None
    answer_p99_s: float | None = None


class ProviderHealth(Figures):
    """Written by the health service (key: the provider): the fleet's view over the last `window_s` seconds.

    `at` is when it was true: a reader lets it expire. `senders` reported of late, `senders_open` of them have their
    breaker not closed. `domains` are those with the most results, the rest together is `other`.
    """

    provider: _Name
    at: AwareDatetime
    instance: str = ""  # the health worker that says so
    window_s: float = 0.0
    senders: int = 0
    senders_open: int = 0
    oldest_wait_s: float = 0.0
    domains: Annotated[dict[str, Figures], Field(max_length=DOMAINS_MAX + 1)] = Field(default_factory=dict)
