"""`python -m postlane.telemetry.probe [URL]`: exit code 0 when a service answers 200; a container's health check.

Without a URL: /livez of whichever Postlane service listens on this host, on its own port or POSTLANE_HTTP_PORT. No
shell and no curl are needed in the image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

TIMEOUT_S = 3.0
_PORTS = (9101, 9102, 9103, 9104, 9105)


def _addresses() -> Iterator[tuple[str, int, str]]:
    given = os.environ.get("POSTLANE_HTTP_PORT")
    for port in (int(given),) if given else _PORTS:
        yield "127.0.0.1", port, "/livez"


def _parsed(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise SystemExit(f"{url}: an address like http://127.0.0.1:9102/readyz is expected")
    return parts.hostname, parts.port or 80, parts.path or "/"


def answer(host: str, port: int, path: str) -> tuple[int, str] | None:
    """Status and the beginning of the body; None where nothing listens or it says nothing in `TIMEOUT_S`."""
    connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(500).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def main() -> int:
    wanted = [_parsed(sys.argv[1])] if len(sys.argv) > 1 else list(_addresses())
    for host, port, path in wanted:
        found = answer(host, port, path)
        if found is not None:
            print(found[1])
            return 0 if found[0] == 200 else 1
    print(f"nothing answers at {', '.join(f'{host}:{port}' for host, port, _ in wanted)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
