"""A dispatch record to the bytes of its mail: the template's pinned version, the composer, the envelope.

The envelope sender is the delivery's signed return path where the installation takes bounces, else the mail's sender;
the bytes do not depend on it.
"""

from __future__ import annotations

from postlane.bounce_keys import ReturnPaths
from postlane.core.addresses import InvalidAddress, parse_mailbox
from postlane.core.events import DispatchReady
from postlane.eventlog.tables import TemplateTable
from postlane.mime.compose import compose
from postlane.mime.content import InvalidContent, Rendered
from postlane.mime.templates import TemplateError, TemplateRenderer
from postlane_sender.lane import Composed, NotComposable


class Composer:
    """Composes mails from one table of templates; nothing of a record leads anywhere else."""

    def __init__(self, templates: TemplateTable, return_paths: ReturnPaths | None = None) -> None:
        self._templates = templates
        self._return_paths = return_paths
        self._renderer = TemplateRenderer()

    def __call__(self, mail: DispatchReady) -> Composed:
        """The same bytes each time it is asked for the same delivery. Raises NotComposable."""
        content = mail.content
        try:
            rendered = self._rendered(mail)
            date_ms = int(mail.requested_at.timestamp() * 1000)
            data = compose(content, delivery_id=mail.delivery_id, date_ms=date_ms, rendered=rendered, trace=mail.trace)
            signed = None if self._return_paths is None else self._return_paths.of(mail.delivery_id)
            return Composed(signed or parse_mailbox(content.sender).address, mail.recipient, data)
        except (TemplateError, InvalidContent, InvalidAddress) as error:
            raise NotComposable(str(error)) from None

    def _rendered(self, mail: DispatchReady) -> Rendered | None:
        wanted = mail.content.template
        if wanted is None:
            return None
        template = self._templates.get(wanted.id, wanted.version or 0)
        if template is None:
            raise NotComposable(f"template {wanted.id!r} has no version {wanted.version}")
        return self._renderer.render(template, wanted.data)
