"""The span of a request to the API: child of the caller's, parent of the publish.

A request without a trace of its own is traced by the hash of its message id, as the router would, so that both choose
the same mails; a mail without a key, whose id is made later, by the router alone.
"""

from __future__ import annotations

from aiohttp import web

from postlane.core.api_keys import ApiKey
from postlane.core.identity import message_id_from_key
from postlane.mail import Mail
from postlane.telemetry.tracing import NO_SPAN, Span, Tracer, Value

TRACE_MAX_CHARS = 512


def begin(tracer: Tracer, request: web.Request, caller: ApiKey, mail: Mail, key: str | None) -> Span:
    """A span that is to be entered around the publish."""
    if not tracer.enabled:
        return NO_SPAN
    given = [(name, request.headers.get(name, "")) for name in ("traceparent", "tracestate")]
    headers = [(name, text.encode("latin-1", "replace")) for name, text in given if 0 < len(text) <= TRACE_MAX_CHARS]
    ident = None if not key else message_id_from_key(caller.tenant or mail.tenant, key).encode()
    if not (headers or ident) or not tracer.wants(headers, ident):
        return NO_SPAN
    route = _route(request)
    attributes: dict[str, Value] = {
        "http.request.method": request.method,
        "http.route": route,
        "url.scheme": request.scheme,
        "postlane.api_key": caller.name,
        "postlane.lane": mail.lane,
        "postlane.tenant": caller.tenant or mail.tenant,
    }
    parent = tracer.extract(headers)
    return tracer.span(f"{request.method} {route}", parent, attributes=attributes, kind="server", root=True)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return request.path if resource is None else resource.canonical
