"""Hears that the connection to the transaction coordinator was lost, also when the library mends it by itself.

librdkafka sends EndTxn again over a new connection, and `commit_transaction` returns as if nothing had been; the first
EndTxn may still be on its way and would end the next transaction (librdkafka#5423). `error_cb` speaks of a lost
connection only where no broker at all is left, so with several brokers the library's log is the only word there is:
its lines of the facility FAIL name the broker handle, `TxnCoordinator` for this one.
"""

from __future__ import annotations

import logging

from postlane.eventlog.kafka_config import LIBRARY_LOG, Conf

# `log.connection.close`: a peer that closes is a line too. 6 (info): the level of such a line.
OPTIONS: Conf = {"log.connection.close": True, "log_level": 6}
_LOST = ("FAIL", "TxnCoordinator")


class CoordinatorWatch:
    """A producer's log: `lost` says whether the coordinator's connection was, since it was last set to False.

    Lines are handed over by the producer's `poll`, so poll before asking.
    """

    def __init__(self) -> None:
        self.lost = False
        self.logger = logging.Logger("postlane.eventlog.librdkafka.transactor")
        self.logger.addHandler(_Ear(self))


class _Ear(logging.Handler):
    """Passes lines on to the library's log: what is said of connections at debug level only."""

    def __init__(self, watch: CoordinatorWatch) -> None:
        super().__init__()
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if said.startswith(_LOST[0]):
            self._watch.lost = self._watch.lost or _LOST[1] in said
            LIBRARY_LOG.debug("%s", said)
        else:
            LIBRARY_LOG.log(record.levelno, "%s", said)
