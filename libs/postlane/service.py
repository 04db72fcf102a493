"""The life of a service process: read the environment once, log, answer probes, start, run, stop on SIGTERM, exit code.

0 an orderly stop, 1 something broke or another process is us (a supervisor starts it again), 2 a configuration error
(starting again will not help). A broker that does not answer at the start, or topics that are not there yet, are
waited for with a bounded backoff while /readyz says why: dependants come up in any order, and a crash loop would hide
the reason.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from threading import Timer
from typing import Any, Protocol

from postlane.config import ConfigurationError, Environment, read_config, read_environment
from postlane.core.policy import Config
from postlane.eventlog.errors import Fenced, Retriable, UnknownTopic
from postlane.instance_lock import instance_lock
from postlane.telemetry import logs, tracing
from postlane.telemetry.http import ServiceHttp
from postlane.telemetry.metrics import Metrics
from postlane.twin import marked

PORTS = {"router": 9101, "sender": 9102, "ledger": 9103, "producer": 9104, "health": 9105}
START_RETRY_FIRST_S = 0.25
START_RETRY_MAX_S = 5.0
STOP_TIMEOUT_S = 45.0  # longer than the longest drain and one tick
EXIT_TIMEOUT_S = 10.0  # for what is left after the stop: threads that will not end, a full pipe

log = logging.getLogger("postlane.service")


class Service(Protocol):
    """What runs in a service process."""

    async def start(self) -> None:
        """Become ready to run. After Retriable or UnknownTopic it is called again, so it first lets go of what it
        had opened."""

    async def run(self) -> None:
        """Work until `stop` was called; raises when it cannot go on."""

    async def stop(self) -> None:
        """Drain, settle, close: bounded by the service's own time-outs. Also called when `start` never succeeded."""

    def not_ready(self) -> str | None:
        """None while it can do its work, else why not. Called from another thread: cheap, and without locks."""


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What `build` gets: the world as it was read once."""

    name: str
    environment: Environment
    config: Config
    metrics: Metrics
    tracer: tracing.Tracer
    beside: list[Coroutine[Any, Any, None]] = field(default_factory=list)  # run as long as the service; never fail it
    before: list[Callable[[], Awaitable[None]]] = field(default_factory=list)  # before each try to start
    http_port: int = 0
    nonce: str = ""  # of this boot, as /livez says it

    @property
    def client_id(self) -> str:
        """Names this process to the brokers, and says where it can be asked whether it lives (postlane.twin)."""
        return marked(f"postlane-{self.name}-{self.environment.instance_id}", self.http_port, self.nonce)


@dataclass(slots=True)
class _Phase:
    """Where the process is in its life, as /readyz tells it; None while the service itself answers."""

    reason: str | None = "starting"
    started: bool = False
    service: Service | None = field(default=None, repr=False)

    def not_ready(self) -> str | None:
        if self.reason is not None or self.service is None:
            return self.reason or "starting"
        return self.service.not_ready()


def run(
    name: str,
    default_port: int,
    build: Callable[[ServiceContext], Service],
    *,
    uvloop: bool = True,
    stop_timeout_s: float = STOP_TIMEOUT_S,
) -> int:
    """Run the service that `build` makes until SIGTERM or SIGINT; returns the exit code.

    `default_port` is where /livez, /readyz and /metrics answer unless POSTLANE_HTTP_PORT says otherwise. A second
    signal, or `stop_timeout_s` seconds, end a stop that hangs (exit code 1).
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_before_the_loop)
    try:
        environment = read_environment()
        logs.configure(name, environment.instance_id)
        config = read_config(environment.config_file)
        with instance_lock(environment.data_dir, name, environment.instance_id):
            return _run(name, default_port, build, environment, config, uvloop, stop_timeout_s)
    except ConfigurationError as error:
        print(f"postlane {name}: {error}", file=sys.stderr)
        return 2
    except Fenced as error:
        print(f"postlane {name}: another process is this instance: {error}", file=sys.stderr)
        return 1
    except Exception:
        log.exception("the service failed")
        return 1


def _stop_before_the_loop(number: int, frame: object) -> None:
    """Nothing has begun yet, so a stop is an orderly one; the loop takes the signals over when it starts."""
    raise SystemExit(0)


def _run(
    name: str,
    default_port: int,
    build: Callable[[ServiceContext], Service],
    environment: Environment,
    config: Config,
    uvloop: bool,
    stop_timeout_s: float,
) -> int:
    metrics = Metrics(name)
    tracer = tracing.tracer(name, environment.instance_id)
    phase = _Phase()
    metrics.watch(phase.not_ready, environment.data_dir)
    port = default_port if environment.http_port is None else environment.http_port
    http = ServiceHttp(
        environment.http_host,
        port,
        phase.not_ready,
        service=name,
        instance=environment.instance_id,
        registry=metrics.registry,
    )
    http.start()
    log.info("listening", extra={"http": f"{http.host}:{http.port}", "nonce": http.nonce})
    last_resort = Timer(stop_timeout_s + EXIT_TIMEOUT_S, _exit_now)
    last_resort.daemon = True
    try:
        with asyncio.Runner(loop_factory=_loop_factory(uvloop)) as runner:
            context = ServiceContext(name, environment, config, metrics, tracer, http_port=http.port, nonce=http.nonce)
            return runner.run(_live(lambda: build(context), phase, last_resort, stop_timeout_s, context))
    finally:
        http.close()
        tracer.close()
        last_resort.cancel()


def _exit_now() -> None:
    log.critical("the process would not end; ending it")
    os._exit(1)


async def _live(
    build: Callable[[], Service],
    phase: _Phase,
    last_resort: Timer,
    stop_timeout_s: float,
    context: ServiceContext,
) -> int:
    """Start, run, stop; the service is built inside the loop, so that it may make asyncio objects."""
    asked, pressed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (pressed if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    service = phase.service = build()
    aside = [asyncio.create_task(each, name="beside") for each in context.beside]
    work = asyncio.create_task(_start_and_run(service, phase, asked, context.before), name="service")
    stop_wanted = asyncio.create_task(asked.wait(), name="signal")
    await asyncio.wait({work, stop_wanted}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stop_wanted, *aside):
        task.cancel()
    last_resort.start()
    if not asked.is_set():
        phase.reason = "stopping"
        await _after_failure(service, work, stop_timeout_s)
        work.result()  # raises what ended it
        log.error("the service ended without being asked to")
        return 1
    log.info("stopping")
    phase.reason = "stopping"
    if not phase.started:
        work.cancel()
    return await _stop(service, work, pressed, stop_timeout_s)


async def _start_and_run(
    service: Service, phase: _Phase, asked: asyncio.Event, before: Sequence[Callable[[], Awaitable[None]]]
) -> None:
    wait_s = START_RETRY_FIRST_S
    while not asked.is_set():
        try:
            for check in before:
                await check()
            await service.start()
            break
        except (Retriable, UnknownTopic) as error:
            phase.reason = f"starting: {error}"
            log.warning("cannot start yet", extra={"reason": str(error), "again_in_s": wait_s})
        try:
            await asyncio.wait_for(asked.wait(), wait_s)
        except TimeoutError:
            wait_s = min(wait_s * 2, START_RETRY_MAX_S)
    if asked.is_set():
        return
    phase.reason, phase.started = None, True
    log.info("started")
    await service.run()


async def _stop(service: Service, work: asyncio.Task[None], pressed: asyncio.Event, timeout_s: float) -> int:
    """Let the service drain; a second signal or the time-out cut it short."""
    ending: asyncio.Task[Any] = asyncio.create_task(_drain(service, work), name="stop")
    again = asyncio.create_task(pressed.wait(), name="second signal")
    await asyncio.wait({ending, again}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not ending.done():
        log.error("the stop was cut short", extra={"timeout_s": timeout_s, "second_signal": pressed.is_set()})
        for task in (ending, work):
            task.cancel()
        await asyncio.wait({ending, work}, timeout=1.0)
        return 1
    ending.result()
    log.info("stopped")
    return 0


async def _drain(service: Service, work: asyncio.Task[None]) -> None:
    await service.stop()
    await asyncio.wait({work})
    if not work.cancelled():
        work.result()


async def _after_failure(service: Service, work: asyncio.Task[None], timeout_s: float) -> None:
    """Let go of what the failed service holds; what ended it is what the process reports."""
    if work.cancelled():
        return
    try:
        await asyncio.wait_for(service.stop(), timeout_s)
    except Exception as error:
        log.warning("closing after the failure failed too", extra={"error": f"{type(error).__name__}: {error}"})


def _loop_factory(wanted: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not wanted:
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
