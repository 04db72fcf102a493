"""The operator's Kafka options in Faust's words.

What concerns identity and encryption must be translated or refused: a connection that is less protected than asked
for is never made. What only librdkafka has (batching, buffers) means nothing here and is left out.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import faust

from postlane.config import ConfigurationError

SESSION_TIMEOUT_S = 10.0  # a worker that is gone is noticed after this
HEARTBEAT_S = 1.0
COMMIT_EVERY_S = 2.8
_PROTECTED = ("security.", "sasl.", "ssl.", "enable.ssl.", "https.")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_KNOWN = frozenset(
    {
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.endpoint.identification.algorithm",
        "enable.ssl.certificate.verification",
    }
)


def settings_of(options: Mapping[str, str]) -> dict[str, Any]:
    """Arguments for `faust.App`. Raises ConfigurationError, with no value in the message (it may be a secret)."""
    for name in options:
        if name.startswith(_PROTECTED) and name not in _KNOWN:
            raise _refused(name, "the health service cannot do this; it knows PLAIN and SCRAM, and PEM files for TLS")
    settings: dict[str, Any] = {
        "broker_session_timeout": _seconds(options, "session.timeout.ms", SESSION_TIMEOUT_S),
        "broker_heartbeat_interval": _seconds(options, "heartbeat.interval.ms", HEARTBEAT_S),
        "broker_commit_interval": COMMIT_EVERY_S,
    }
    credentials = _credentials(options)
    if credentials is not None:
        settings["broker_credentials"] = credentials
    return settings


def broker_urls(bootstrap_servers: str) -> list[str]:
    """`a:1,b:2` in Faust's form."""
    return [f"kafka://{server.strip()}" for server in bootstrap_servers.split(",") if server.strip()]


def _credentials(options: Mapping[str, str]) -> Any:
    protocol = options.get("security.protocol", "PLAINTEXT").upper()
    if protocol not in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        raise _refused("security.protocol", "one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL is expected")
    context = _tls(options) if protocol.endswith("SSL") else None
    if protocol.startswith("SASL"):
        mechanism = (options.get("sasl.mechanism") or options.get("sasl.mechanisms") or "GSSAPI").upper()
        if mechanism not in _MECHANISMS:
            raise _refused("sasl.mechanism", f"the health service knows {', '.join(_MECHANISMS)}")
        return faust.SASLCredentials(
            username=options.get("sasl.username", ""),
            password=options.get("sasl.password", ""),
            mechanism=mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl.ca.location"))
    except (OSError, ssl.SSLError) as error:
        raise _refused("ssl.ca.location", f"it cannot be read: {type(error).__name__}") from None
    if options.get("ssl.endpoint.identification.algorithm", "https").lower() == "none":
        context.check_hostname = False
    if options.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate = options.get("ssl.certificate.location")
    if certificate is not None:
        try:
            key = options.get("ssl.key.location")
            context.load_cert_chain(certificate, key, password=lambda: options.get("ssl.key.password", ""))
        except (OSError, ssl.SSLError) as error:
            raise _refused("ssl.certificate.location", f"it cannot be used: {type(error).__name__}") from None
    return context


def _seconds(options: Mapping[str, str], name: str, default_s: float) -> float:
    text = options.get(name)
    if text is None:
        return default_s
    if not text.isdigit() or int(text) == 0:
        raise _refused(name, "a number of milliseconds is expected")
    return int(text) / 1000


def _refused(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"POSTLANE_KAFKA_{name.upper().replace('.', '_')}: {why}")
