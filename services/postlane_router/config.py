"""What the router process is told: its bounds, with units and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from postlane.config import Environment
from postlane.core.policy import Policy


class RouterSettings(Policy):
    """The bounds of one router process."""

    instance: str
    store_path: Path
    dedup_days: Annotated[float, Field(gt=0)] = 7
    batch_records_max: Annotated[int, Field(ge=1)] = 2000  # read for one transaction
    batch_written_max_bytes: Annotated[int, Field(ge=1)] = 8_000_000  # in one transaction, plus one mail
    poll_wait_max_s: Annotated[float, Field(gt=0)] = 0.5
    tables_timeout_s: Annotated[float, Field(gt=0)] = 60
    restore_timeout_s: Annotated[float, Field(gt=0)] = 60  # without progress, of one partition's memory
    retry_wait_s: Annotated[float, Field(gt=0)] = 1.0  # before what failed in passing is tried again
    lag_every_s: Annotated[float, Field(gt=0)] = 5.0
    store_cache_bytes: Annotated[int, Field(ge=1)] = 128 * 1024 * 1024
    store_write_buffer_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024

    @classmethod
    def of(cls, environment: Environment, dedup_days: float) -> RouterSettings:
        """From the environment, as it was read at the edge."""
        instance = environment.instance_id
        return cls(
            instance=instance,
            store_path=environment.data_dir / f"router-{instance}" / "seen",
            dedup_days=dedup_days,
        )
