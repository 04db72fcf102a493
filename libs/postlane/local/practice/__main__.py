"""`python -m postlane.local.practice`: the practice SMTP server as a process."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import ssl
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from postlane.local.practice.ledger import LedgerInUse
from postlane.local.practice.listener import SIZE_MAX_BYTES, Options
from postlane.local.practice.server import PracticeServer


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; 0 then, 1 when a port or the ledger cannot be had, 2 for wrong use."""
    arguments = _parser().parse_args(argv)
    try:
        listeners, options = _listeners(arguments), _options(arguments)
    except (ValueError, OSError, ssl.SSLError) as error:
        print(f"practice: {error}", file=sys.stderr)
        return 2
    gc.set_threshold(50_000, 20, 20)  # sessions make no cycles worth looking for every 700 objects
    try:
        _run(_serve(arguments, listeners, options))
    except (OSError, LedgerInUse) as error:
        print(f"practice: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(arguments: argparse.Namespace, listeners: dict[str, int], options: Options) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = PracticeServer(
        arguments.ledger, listeners, http_port=arguments.http_port, host=arguments.host, options=options
    )
    if arguments.auth_file is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _rotate, arguments.auth_file, options, server)
    async with server:
        print(json.dumps({"smtp": server.ports, "http": server.url, "ledger": str(arguments.ledger)}), flush=True)
        await stop.wait()


def _rotate(auth_file: Path, options: Options, server: PracticeServer) -> None:
    """SIGHUP: the credentials as the file has them now; sessions of those that changed are closed."""
    try:
        users = _users(auth_file)
    except (OSError, ValueError) as error:
        print(f"practice: the credentials stay as they were: {error}", file=sys.stderr, flush=True)
        return
    changed = {name for name, password in options.users.items() if users.get(name) != password}
    options.users.clear()
    options.users.update(users)
    server.expire(changed)


def _run(serve: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve)
    else:
        uvloop.run(serve)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m postlane.local.practice", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (0.0.0.0 in a container)")
    parser.add_argument("--smtp-port", type=int, help="the same as --listen primary=PORT")
    parser.add_argument("--listen", action="append", default=[], metavar="NAME=PORT", help="an SMTP port; repeatable")
    parser.add_argument("--http-port", type=int, required=True, help="the control interface; 0 for any free port")
    parser.add_argument("--ledger", type=Path, required=True, metavar="FILE", help="the NDJSON ledger, appended to")
    parser.add_argument("--no-pipelining", action="store_true", help="do not offer PIPELINING")
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate: offer STARTTLS")
    parser.add_argument("--tls-key", type=Path, help="PEM key of the certificate")
    parser.add_argument("--implicit-tls", action="store_true", help="TLS from the first byte instead of STARTTLS")
    parser.add_argument("--auth-file", type=Path, help="lines user:password: AUTH is then necessary")
    parser.add_argument("--size-max-bytes", type=int, default=SIZE_MAX_BYTES, help="largest message")
    parser.add_argument("--data-always-354", action="store_true", help="354 even when every recipient was refused")
    parser.add_argument(
        "--record-rejected", action="store_true", help="rejected and dropped mails go to the ledger too"
    )
    return parser


def _listeners(arguments: argparse.Namespace) -> dict[str, int]:
    listeners = {} if arguments.smtp_port is None else {"primary": arguments.smtp_port}
    for text in arguments.listen:
        name, _, port = text.partition("=")
        if not name.isidentifier() or not port.isdigit() or name in listeners:
            raise ValueError(f"--listen takes NAME=PORT with each name once, not {text!r}")
        listeners[name] = int(port)
    if not listeners:
        raise ValueError("give --smtp-port or --listen")
    return listeners


def _options(arguments: argparse.Namespace) -> Options:
    tls = None
    if arguments.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    elif arguments.implicit_tls:
        raise ValueError("--implicit-tls needs --tls-cert")
    users = {} if arguments.auth_file is None else _users(arguments.auth_file)
    return Options(
        pipelining=not arguments.no_pipelining,
        tls=tls,
        implicit_tls=arguments.implicit_tls,
        users=users,
        size_max_bytes=arguments.size_max_bytes,
        data_always=arguments.data_always_354,
        record_rejected=arguments.record_rejected,
    )


def _users(auth_file: Path) -> dict[str, str]:
    users = {}
    for line in auth_file.read_text().splitlines():
        name, colon, password = line.partition(":")
        if colon:
            users[name] = password
    if not users:
        raise ValueError(f"{auth_file} has no line user:password")
    return users


if __name__ == "__main__":
    raise SystemExit(main())
