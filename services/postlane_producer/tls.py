"""TLS of what listens here."""

from __future__ import annotations

import ssl

from postlane.config import ConfigurationError
from postlane_producer.config import TlsFiles


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """A server's context with this certificate. Raises ConfigurationError when the files cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"{files.variable}: {files.certificate} and {files.key} cannot be used: {reason}"
        ) from None
    return context
