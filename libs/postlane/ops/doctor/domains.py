"""Checks of the DNS of the domains that mails are sent from: MX, SPF, DKIM, DMARC."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from postlane.ops.doctor.check import Check, fail, ok, skip, warn

LOOKUP_TIMEOUT_S = 3.0
DOMAINS_MAX = 20
# Reserved (RFC 2606, RFC 6761, RFC 9476): nobody's, so there is nothing to look up.
RESERVED = (".example", ".example.com", ".example.net", ".example.org", ".internal", ".invalid", ".local", ".test")
Answer = tuple[Literal["found", "none", "no name", "unknown"], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Nameserver:
    """Who to ask instead of the machine's own resolver."""

    host: str
    port: int = 53


async def domain_checks(
    domains: Collection[str],
    selectors: Collection[str] = (),
    nameserver: Nameserver | None = None,
    returns: str | None = None,
) -> tuple[Check, ...]:
    """The checks of each domain. `selectors` are those of its DKIM keys; without one it can only be told that a
    domain has no key at all (RFC 8020: where `_domainkey` does not exist, nothing below it does). `returns` is the
    domain of the return paths, which no mail is from: only its MX and SPF count."""
    if not (domains or returns):
        return ()
    try:
        import dns.asyncresolver
    except ModuleNotFoundError:
        return (skip("domain-spf", "dnspython is not installed", "pip install 'postlane[doctor]' to look domains up"),)
    resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
    if nameserver is not None:
        resolver.nameservers, resolver.port = [nameserver.host], nameserver.port
    resolver.lifetime = LOOKUP_TIMEOUT_S
    chosen = [domain for domain in domains if _is_somebodys(domain)][:DOMAINS_MAX]
    asked = [_domain(resolver, domain, selectors) for domain in chosen]
    if returns is not None and _is_somebodys(returns) and returns not in chosen:
        asked.append(_returns(resolver, returns))
    return tuple(check for checks in await asyncio.gather(*asked) for check in checks)


def _is_somebodys(domain: str) -> bool:
    return not f".{domain}".endswith((*RESERVED, ".localhost"))


async def _returns(resolver: Any, domain: str) -> list[Check]:
    mx, texts = await asyncio.gather(_ask(resolver, domain, "MX"), _ask(resolver, domain, "TXT"))
    if "unknown" in {mx[0], texts[0]}:
        return [skip("domain-spf", "the resolver of this machine does not answer", "", domain)]
    return [mx_check(domain, mx), *spf_checks(domain, texts)]


async def _domain(resolver: Any, domain: str, selectors: Collection[str]) -> list[Check]:
    names = [f"{selector}._domainkey.{domain}" for selector in selectors] or [f"_domainkey.{domain}"]
    mx, texts, dmarc, *keys = await asyncio.gather(
        _ask(resolver, domain, "MX"),
        _ask(resolver, domain, "TXT"),
        _dmarc(resolver, domain),
        *(_ask(resolver, name, "TXT") for name in names),
    )
    if "unknown" in {mx[0], texts[0], dmarc[0]}:
        return [skip("domain-spf", "the resolver of this machine does not answer", "", domain)]
    return [
        mx_check(domain, mx),
        *spf_checks(domain, texts),
        dmarc_check(domain, dmarc),
        *(dkim_check(domain, name, bool(selectors), key) for name, key in zip(names, keys, strict=True)),
    ]


async def _dmarc(resolver: Any, domain: str) -> Answer:
    """The domain's own record, or that of the nearest domain above it (RFC 9989's walk up the tree)."""
    labels = domain.split(".")
    answer: Answer = ("none", ())
    for first in range(max(1, len(labels) - 1)):
        answer = await _ask(resolver, "_dmarc." + ".".join(labels[first:]), "TXT")
        if answer[0] in ("found", "unknown"):
            break
    return answer


async def _ask(resolver: Any, name: str, kind: str) -> Answer:
    import dns.exception
    import dns.resolver

    try:
        answer = await resolver.resolve(name, kind)
    except dns.resolver.NXDOMAIN:
        return "no name", ()
    except dns.resolver.NoAnswer:
        return "none", ()
    except (dns.exception.DNSException, OSError):
        return "unknown", ()
    return "found", tuple(_text(record) for record in answer)


def _text(record: Any) -> str:
    if hasattr(record, "strings"):  # TXT: the pieces of one text belong together (RFC 7208 3.3)
        return b"".join(record.strings).decode("utf-8", "replace")
    return str(record.to_text())


def mx_check(domain: str, answer: Answer) -> Check:
    kind, records = answer
    if kind == "no name":
        return fail("domain-mx", f"{domain} does not exist in the DNS", "correct the sender's domain", domain)
    if not records:
        return warn("domain-mx", "no MX", "publish MX records for it, so that bounces and replies arrive", domain)
    if all(record.split()[-1] == "." for record in records):
        do = "send from a domain that takes mail, or publish MX records"
        return fail("domain-mx", "a null MX: this domain takes no mail (RFC 7505)", do, domain)
    return ok("domain-mx", ", ".join(sorted(record.split()[-1] for record in records)[:2]), domain)


def spf_checks(domain: str, answer: Answer) -> Iterator[Check]:
    records = [text for text in answer[1] if text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")]
    if not records:
        do = "publish a TXT record v=spf1 that includes the provider's, e.g. v=spf1 include:spf.provider.example -all"
        yield fail("domain-spf", "no SPF record", do, domain)
    elif len(records) > 1:
        yield fail("domain-spf", f"{len(records)} SPF records: receivers use none (RFC 7208 4.5)", "keep one", domain)
    elif records[0].lower().split()[-1] in ("+all", "all"):
        yield warn("domain-spf", "+all: everybody may send in its name", "end it with ~all or -all", domain)
    else:
        yield ok("domain-spf", records[0][:60], domain)


def dmarc_check(domain: str, answer: Answer) -> Check:
    records = [text for text in answer[1] if text.lower().replace(" ", "").startswith("v=dmarc1")]
    if not records:
        do = f"publish TXT _dmarc.{domain}, to begin with v=DMARC1; p=none; rua=mailto:dmarc@{domain}"
        return fail("domain-dmarc", "no DMARC record", do, domain)
    if len(records) > 1:
        return fail("domain-dmarc", f"{len(records)} DMARC records: receivers use none", "keep one", domain)
    return ok("domain-dmarc", records[0][:60], domain)


def dkim_check(domain: str, name: str, with_selector: bool, answer: Answer) -> Check:
    do = f"have the provider make a key, and publish it at <selector>._domainkey.{domain}"
    if with_selector:
        keys = [text for text in answer[1] if "p=" in text.replace(" ", "")]
        if not keys:
            return fail("domain-dkim", f"no key at {name}", do, domain)
        if any(part.strip() == "p=" for text in keys for part in text.replace(" ", "").split(";")):
            return fail("domain-dkim", f"the key at {name} is revoked (empty p=)", do, domain)
        return ok("domain-dkim", f"a key at {name}", domain)
    if answer[0] == "no name":
        return fail("domain-dkim", f"{name} does not exist: there is no key at all", do, domain)
    if answer[0] == "unknown":
        return skip("domain-dkim", f"{name} could not be asked for", "", domain)
    return skip("domain-dkim", "there may be keys", "name one with --dkim-selector to have it checked", domain)
