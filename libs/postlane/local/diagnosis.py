"""From a broker's log to one sentence."""

from __future__ import annotations

from pathlib import Path

_TAIL_BYTES = 256 * 1024

# (what the log contains, the sentence); the first that is found speaks.
_SYMPTOMS = (
    ("No space left on device", "The disk of {data} is full: make room and start again"),
    ("Address already in use", "A port of Kafka is taken by another process: stop that one, or choose another port"),
    ("OutOfMemoryError", "Kafka ran out of memory"),
    ("Could not reserve enough space", "There is not enough memory for Kafka's heap"),
    ("UnsupportedClassVersionError", "The Java found is too old for Kafka"),
    ("Failed to acquire lock on file", "Another Kafka uses the data folder {data}"),
    ("InconsistentClusterIdException", "The data folder {data} belongs to another cluster"),
    ("Permission denied", "Kafka may not write to the data folder {data}"),
)


def tail(log: Path, since: int = 0) -> str:
    """What was written to the log from byte `since` on, at most its last 256 KiB."""
    try:
        size = log.stat().st_size
        with log.open("rb") as handle:
            handle.seek(max(since if since <= size else 0, size - _TAIL_BYTES))
            return handle.read().decode(errors="replace")
    except OSError:
        return ""


def explain(text: str, data: Path, log: Path, otherwise: str) -> str:
    """One sentence for what the log's text shows; `otherwise` when it shows nothing known. Names the log file."""
    for symptom, sentence in _SYMPTOMS:
        if symptom in text:
            return f"{sentence.format(data=data)} (log: {log})."
    return f"{otherwise} (log: {log})."
