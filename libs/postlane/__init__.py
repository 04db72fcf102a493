"""Postlane: publish mails that are sent exactly as asked for, with books that can be looked up.

    from postlane import Mail, Publisher

    with Publisher.from_env() as publisher:
        receipt = publisher.publish(Mail(sender="shop@example.org", to="ada@example.com", subject="Hi", text="Hello"))

What is named in `__all__` is loaded when it is first used, so that `import postlane` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from postlane.errors import (
        BrokerUnavailable,
        InvalidMail,
        MailTooLarge,
        PublishError,
        PublishRefused,
        PublishTimeout,
    )
    from postlane.mail import Attachment, Mail, Template
    from postlane.publisher import AsyncPublisher, Publisher, Receipt

__all__ = [
    "AsyncPublisher",
    "Attachment",
    "BrokerUnavailable",
    "InvalidMail",
    "Mail",
    "MailTooLarge",
    "PublishError",
    "PublishRefused",
    "PublishTimeout",
    "Publisher",
    "Receipt",
    "Template",
]

_HOMES = {
    "postlane.errors": (
        "BrokerUnavailable",
        "InvalidMail",
        "MailTooLarge",
        "PublishError",
        "PublishRefused",
        "PublishTimeout",
    ),
    "postlane.mail": ("Attachment", "Mail", "Template"),
    "postlane.publisher": ("AsyncPublisher", "Publisher", "Receipt"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'postlane' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
