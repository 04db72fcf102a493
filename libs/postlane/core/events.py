"""The facts that travel through the topics: frozen models, past tense, tagged by type and version.

Times are aware datetimes, RFC 3339 in UTC on the wire. Fields that are None or empty may be left out on the wire.
Readers ignore fields they do not know, so that an older service can read what a newer one wrote; `Mail`, what a
publisher hands in, refuses them, because a misspelt field there is a mail that goes out wrong.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

RECIPIENTS_MAX = 100
REQUEST_MAX_BYTES = 900_000
FANOUT_MAX_BYTES = 10_000_000  # recipients x size of one request

EVERY_TENANT = "*"  # of a suppression; no tenant can be called so (postlane.mail)

InDoubt = Literal["resend", "park"]


class Fact(BaseModel):
    """Base of everything that is written to a topic."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_bytes="base64", val_json_bytes="base64")


# ---------------------------------------------------------------------------------------------- content of a mail


class Attachment(Fact):
    """A file that travels with a mail; `content` is base64 (RFC 4648 4)."""

    filename: str
    content_type: str = "application/octet-stream"
    content: str
    content_id: str | None = None
    disposition: Literal["attachment", "inline"] = "attachment"


class TemplateRef(Fact):
    """Which template renders the mail, with which data; the router pins `version` when the publisher left it open."""

    id: str
    version: int | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class MailContent(Fact):
    """What the recipient will read. `html` and `text` are None where a template renders them."""

    sender: str
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    reply_to: str | None = None
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: tuple[Attachment, ...] = ()
    template: TemplateRef | None = None
    headers: dict[str, str] = Field(default_factory=dict)


class MailRequested(MailContent):
    """Written by a producer when a mail was accepted (`mail.requests`, key `message_id`).

    `bcc` is known to the router only. `generation` is 0 for a first publication; a replay raises it, names the
    delivery that it replays in `replay_of` and has exactly one recipient: `replay_recipient` where it is given, so
    that `to` and `cc` can stay what the first recipients read and who was in `bcc` stays hidden.
    """

    message_id: str
    tenant: str = "default"
    key: str | None = None
    lane: str = "transactional"
    bcc: tuple[str, ...] = ()
    campaign: str | None = None
    send_at: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    in_doubt: InDoubt | None = None
    requested_at: AwareDatetime
    generation: Annotated[int, Field(ge=0)] = 0
    replay_of: str | None = None
    replay_recipient: str | None = None
    replay_forced: bool = False


class DispatchReady(Fact):
    """One delivery on its way: written by the router (hop 0, and after a delay) and by the sender (hop + 1).

    In `mail.delay.<step>` it waits until `due_at`; in `mail.dispatch.<lane>` it may go now. `attempt` is the number
    that the next SMTP attempt will have; `doubts` counts recorded doubts; `failed_providers` are those that refused
    this mail for reasons of their own, so that the next attempt goes elsewhere. `trace` is the router's span that made
    this delivery, `<32 hex>-<16 hex>`, where it was sampled: the mail's header says it, and so does a bounce that
    comes back. Written at hop 0 and kept over hops.
    """

    delivery_id: str
    message_id: str
    recipient: str
    generation: int = 0
    hop: int = 0
    attempt: int = 1
    doubts: int = 0
    lane: str
    tenant: str = "default"
    campaign: str | None = None
    in_doubt: InDoubt = "resend"
    requested_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    due_at: AwareDatetime | None = None
    reason: str | None = None
    failed_providers: tuple[str, ...] = ()
    forced: bool = False  # a replay that an operator forced by name: the suppression list does not stop it
    trace: str | None = None
    content: MailContent


# -------------------------------------------------------------------------------------------------- books and memory


class Intent(Fact):
    """Written to `mail.state.<lane>` by the sender before the body may be written."""

    kind: Literal["intent"] = "intent"
    delivery_id: str
    hop: int
    attempt: int
    offset: int  # of the dispatch record in its partition
    instance: str
    boot: str = ""  # which life of the instance: what its flight recorder is matched by
    provider: str | None = None
    ttl_ms: int  # the intent lapses this long after its tick began
    at: AwareDatetime


class Outcome(Fact):
    """Written to `mail.state.<lane>` by the sender when a dispatch record is settled, whatever came of it."""

    kind: Literal["outcome"] = "outcome"
    delivery_id: str
    hop: int
    offset: int
    result: str  # the type of the event that settled it, e.g. "Delivered"
    at: AwareDatetime


class Seen(Fact):
    """Written to `mail.seen` by the router: this key was accepted, with this content (changelog of its store)."""

    digest: str
    at: AwareDatetime


# ------------------------------------------------------------------------------------------------ events, mail.events


class ReplyInfo(Fact):
    """What an SMTP server said: RFC 5321 code, RFC 3463 enhanced code, text."""

    code: int
    enhanced: str | None = None
    text: str = ""


class MailEvent(Fact):
    """Base of what `mail.events` carries (key `message_id`)."""

    message_id: str
    generation: int = 0
    at: AwareDatetime


class DeliveryEvent(MailEvent):
    """An event of one delivery. `possibly_delivered`: an earlier attempt may have arrived (a doubt was recorded)."""

    delivery_id: str
    recipient: str
    attempt: int = 0
    hop: int = 0
    possibly_delivered: bool = False


class Requested(MailEvent):
    """By the router, once per accepted request, before its deliveries."""

    type: Literal["Requested"] = "Requested"
    tenant: str
    lane: str
    key: str | None = None
    campaign: str | None = None
    sender: str
    subject: str = ""
    recipients: int
    requested_at: AwareDatetime
    replay_of: str | None = None


class Conflicted(MailEvent):
    """By the router: the key of an accepted mail came again with other content; the newcomer is a dead letter."""

    type: Literal["Conflicted"] = "Conflicted"
    reason: str = "key_conflict"


class Routed(DeliveryEvent):
    """By the router, when a delivery got its lane and may go at once."""

    type: Literal["Routed"] = "Routed"
    lane: str
    template_version: int | None = None


class Scheduled(DeliveryEvent):
    """By the router, when a delivery waits: for `send_at`, or because something that it belongs to is paused."""

    type: Literal["Scheduled"] = "Scheduled"
    lane: str
    next_at: AwareDatetime
    reason: str = "send_at"


class Suppressed(DeliveryEvent):
    """By the router: the recipient is on the suppression list."""

    type: Literal["Suppressed"] = "Suppressed"
    reason: str


class Cancelled(DeliveryEvent):
    """By the router or the sender: the mail or its campaign was cancelled before its body was written."""

    type: Literal["Cancelled"] = "Cancelled"
    reason: str = "cancelled"


class Expired(DeliveryEvent):
    """By the router or the sender: its time was over before it could be delivered."""

    type: Literal["Expired"] = "Expired"
    reason: str = "expired"


class Rejected(DeliveryEvent):
    """By the router: this recipient or this request cannot be mailed as asked for."""

    type: Literal["Rejected"] = "Rejected"
    reason: str


class Attempted(DeliveryEvent):
    """By the sender, in the transaction of the intent: an SMTP attempt may begin."""

    type: Literal["Attempted"] = "Attempted"
    provider: str | None = None


class Deferred(DeliveryEvent):
    """By the sender: an attempt failed for now; the next one is due at `next_at`."""

    type: Literal["Deferred"] = "Deferred"
    provider: str | None = None
    reply: ReplyInfo | None = None
    reason: str
    next_at: AwareDatetime


class Held(DeliveryEvent):
    """By the sender: it may not start now (a limit, a pause); no attempt was spent."""

    type: Literal["Held"] = "Held"
    reason: str
    next_at: AwareDatetime


class Released(DeliveryEvent):
    """By the sender: an intent ended without a body; proof of not sent, no attempt was spent."""

    type: Literal["Released"] = "Released"
    reason: str
    next_at: AwareDatetime


class Delivered(DeliveryEvent):
    """By the sender: a server accepted the mail."""

    type: Literal["Delivered"] = "Delivered"
    provider: str | None = None
    reply: ReplyInfo | None = None


class Bounced(DeliveryEvent):
    """By the sender or bounce intake: refused for good."""

    type: Literal["Bounced"] = "Bounced"
    provider: str | None = None
    reply: ReplyInfo | None = None
    reason: str


class Uncertain(DeliveryEvent):
    """By the sender: the attempt may or may not have been accepted. With `next_at` it is sent again (policy
    `resend`); without, it rests in the dead letters until a person or a bounce settles it (policy `park`)."""

    type: Literal["Uncertain"] = "Uncertain"
    provider: str | None = None
    reason: str
    policy: InDoubt
    next_at: AwareDatetime | None = None


class DeadLettered(DeliveryEvent):
    """By the router or the sender: given up; the record rests in `mail.dead-letters` with the reason."""

    type: Literal["DeadLettered"] = "DeadLettered"
    provider: str | None = None
    reply: ReplyInfo | None = None
    reason: str


class Replayed(DeliveryEvent):
    """By an operator's replay: a new generation of this delivery was requested. `run` is the name of the replay."""

    type: Literal["Replayed"] = "Replayed"
    replay_generation: int
    reason: str = ""
    run: str = ""


class Discarded(DeliveryEvent):
    """By an operator: this dead letter will not be replayed."""

    type: Literal["Discarded"] = "Discarded"
    reason: str = ""


class Resolved(DeliveryEvent):
    """By an operator or bounce intake: what really became of an uncertain delivery."""

    type: Literal["Resolved"] = "Resolved"
    state: Literal["delivered", "bounced"]
    reason: str = ""


class LetterEvent(Fact):
    """Base of what befalls a dead letter that is no delivery's; `partition` and `offset` are its place."""

    message_id: str | None = None
    partition: int
    offset: int
    reason: str = ""
    run: str = ""
    at: AwareDatetime


class Redriven(LetterEvent):
    """By an operator's replay: the record was written to `topic` again, as it was or under a name of its own."""

    type: Literal["Redriven"] = "Redriven"
    topic: str


class LetterDiscarded(LetterEvent):
    """By an operator: this dead letter will not be written again."""

    type: Literal["LetterDiscarded"] = "LetterDiscarded"


class Undecodable(Fact):
    """By any reader: a record that could not be read went to the dead letters untouched."""

    type: Literal["Undecodable"] = "Undecodable"
    message_id: str | None = None
    topic: str
    partition: int
    offset: int
    reason: str
    at: AwareDatetime


AnyEvent = Annotated[
    Requested
    | Conflicted
    | Routed
    | Scheduled
    | Suppressed
    | Cancelled
    | Expired
    | Rejected
    | Attempted
    | Deferred
    | Held
    | Released
    | Delivered
    | Bounced
    | Uncertain
    | DeadLettered
    | Replayed
    | Discarded
    | Resolved
    | Redriven
    | LetterDiscarded
    | Undecodable,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)

# ------------------------------------------------------------------------------ compact topics, read as tables


class Suppression(Fact):
    """`mail.suppressions`, key `tenant/address`: never mail this address (a tombstone lifts it). The tenant `*` is
    every tenant; no publisher can have that name."""

    tenant: str = "default"
    address: str
    reason: str = "manual"
    at: AwareDatetime


class Template(Fact):
    """`mail.templates`, key `id/version`; versions count from 1 and are never changed once written."""

    id: str
    version: Annotated[int, Field(ge=1)]
    subject: str
    text: str | None = None
    html: str | None = None
    at: AwareDatetime


class Control(Fact):
    """`mail.control`, key `action/scope/name`: an order that holds until its tombstone.

    pause: lane, tenant, campaign or provider waits. cancel: message or campaign ends, for what was requested
    before `at`.
    """

    action: Literal["pause", "cancel"]
    scope: Literal["lane", "tenant", "campaign", "provider", "message"]
    name: str
    at: AwareDatetime
    reason: str = ""


VERSION = 1


def ce_type(model: type[Fact]) -> str:
    """The CloudEvents type of a model: `postlane.<Name>.v<version>`."""
    return f"postlane.{model.__name__}.v{VERSION}"
