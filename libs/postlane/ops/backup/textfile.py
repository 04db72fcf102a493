"""When the last backup succeeded, for Prometheus: a file for the textfile collector of node_exporter.

The file is replaced in one move, and only by a backup that was finished: an old time stamp is an old backup.
"""

from __future__ import annotations

from pathlib import Path

from postlane.ops.backup.manifest import Manifest

LAST_SUCCESS = "postlane_backup_last_success_timestamp_seconds"


def text_of(manifest: Manifest, stored_bytes: int, took_s: float) -> str:
    """In the text format of Prometheus. The time stamp is that of the point, which is what a restore gives back."""
    label = f'{{prefix="{manifest.prefix}"}}'
    rows = (
        (LAST_SUCCESS, "The point (unix seconds) of the last finished backup.", manifest.point.timestamp()),
        ("postlane_backup_last_duration_seconds", "How long the last finished backup took.", took_s),
        ("postlane_backup_last_stored_bytes", "What the last finished backup stored.", stored_bytes),
        ("postlane_backup_last_records", "Records in the last finished backup.", manifest.records),
        ("postlane_backup_last_full", "1 where the last finished backup was a full one.", int(manifest.full)),
    )
    lines = [f"# HELP {n} {h}\n# TYPE {n} gauge\n{n}{label} {value:.3f}\n" for n, h, value in rows]
    return "".join(lines)


def write_textfile(path: Path, text: str) -> None:
    """Raises OSError."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.chmod(0o644)
    beside.replace(path)
