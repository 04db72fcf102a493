"""The control interface: a few HTTP requests, JSON both ways.

| request | does |
| --- | --- |
| `GET /health` | listeners, counters, number of records |
| `GET /metrics` | the counters in Prometheus' text form |
| `GET /faults` | the rules in force, with their hits |
| `PUT /faults` | a list of rules in place of all |
| `POST /faults` | one more rule; answers it with its id |
| `DELETE /faults`, `DELETE /faults/ID` | all rules, or one, go |
| `GET /ledger?since=N&limit=M` | records from number N on, NDJSON, at most 10,000 at a time |
| `GET /ledger/summary` | counts by outcome, deliveries, how many came more than once |
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from postlane.local.practice.faults import InvalidRule
from postlane.local.practice.ledger import READ_MAX_RECORDS

if TYPE_CHECKING:
    from postlane.local.practice.server import PracticeServer

BODY_MAX_BYTES = 1 << 20
REQUEST_TIMEOUT_S = 30.0
_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class _Answer(Exception):
    """An answer given up early."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class ControlInterface:
    """A small HTTP/1.1 server; one request a connection."""

    def __init__(self, server: PracticeServer, host: str, port: int) -> None:
        self._server = server
        self._host = host
        self._port = port
        self._http: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Its base URL, once open."""
        return f"http://{self._host}:{self._port}"

    async def open(self) -> None:
        """Listen; OSError when the port is taken."""
        door = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((self._host, self._port))
            door.setblocking(False)
            self._port = door.getsockname()[1]
            self._http = await asyncio.start_server(self._serve, sock=door)
        except BaseException:
            door.close()
            raise

    async def close(self) -> None:
        """Stop listening."""
        if self._http is not None:
            self._http.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                status, kind, body = await self._request(reader)
                head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
                head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        try:
            method, target, _version = head.split("\r\n", 1)[0].split(" ")
            body = await reader.readexactly(_length(head))
            return 200, *await self._answer(method, target, body)
        except _Answer as answer:
            return answer.status, _JSON, orjson.dumps({"error": str(answer)})
        except InvalidRule as error:
            return 400, _JSON, orjson.dumps({"error": str(error)})
        except OSError as error:
            return 503, _JSON, orjson.dumps({"error": f"a listener cannot come back: {error.strerror or error}"})
        except ValueError as error:
            return 400, _JSON, orjson.dumps({"error": f"not understood: {error}"})

    async def _answer(self, method: str, target: str, body: bytes) -> tuple[str, bytes]:
        address = urlsplit(target)
        path = unquote(address.path)
        server = self._server
        loop = asyncio.get_running_loop()
        if path == "/faults" or path.startswith("/faults/"):
            return _JSON, orjson.dumps(await self._faults(method, path, body))
        if method != "GET":
            raise _Answer(405, f"{method} is not known here")
        if path == "/health":
            return _JSON, orjson.dumps(server.status())
        if path == "/metrics":
            return "text/plain; version=0.0.4", self._metrics()
        if path == "/ledger":
            query = parse_qs(address.query)
            since = int(query.get("since", ["0"])[0])
            limit = min(int(query.get("limit", [str(READ_MAX_RECORDS)])[0]), READ_MAX_RECORDS)
            return _NDJSON, await loop.run_in_executor(None, server.ledger.read, since, limit)
        if path == "/ledger/summary":
            return _JSON, orjson.dumps(await loop.run_in_executor(None, server.ledger.summary))
        raise _Answer(404, f"nothing is at {path}")

    async def _faults(self, method: str, path: str, body: bytes) -> object:
        server = self._server
        rule_id = path.removeprefix("/faults").removeprefix("/")
        if method == "DELETE":
            gone = await server.remove_faults(rule_id or None)
            if rule_id and not gone:
                raise _Answer(404, f"no rule has the id {rule_id}")
            return {"removed": gone}
        if rule_id:
            raise _Answer(405, "a rule is replaced by POST /faults with its id")
        if method == "GET":
            return [rule.as_json() for rule in server.faults.rules()]
        if method == "POST":
            return (await server.add_fault(orjson.loads(body))).as_json()
        if method == "PUT":
            values = orjson.loads(body)
            if not isinstance(values, list):
                raise _Answer(400, "PUT /faults takes a list of rules")
            return [rule.as_json() for rule in await server.set_faults(values)]
        raise _Answer(405, f"{method} is not known here")

    def _metrics(self) -> bytes:
        status = self._server.status()
        lines = [f"postlane_practice_ledger_records {status['records']}"]
        for name, of in status["smtp"].items():
            lines.append(f'postlane_practice_connections_open{{server="{name}"}} {of["connections_open"]}')
            for counter, value in sorted(of["counters"].items()):
                lines.append(f'postlane_practice_{counter}_total{{server="{name}"}} {value}')
        return "\n".join(lines).encode() + b"\n"


def _length(head: str) -> int:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length":
            length = int(value)
            if not 0 <= length <= BODY_MAX_BYTES:
                raise _Answer(400, f"a request may have {BODY_MAX_BYTES} bytes at most")
            return length
    return 0
