"""Delivery status notifications in the forms that servers write, about one mail of ours. Written by hand."""

from __future__ import annotations

import base64

from postlane.core.events import MailContent
from postlane.core.identity import delivery_id
from postlane.mime.compose import compose

MESSAGE = "0190b5a0-7a3c-7c2e-9d54-0123456789ab"
ADA = "ada@example.com"
DELIVERY = delivery_id(MESSAGE, ADA)
TRACE = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


def mail(
    recipient: str = ADA, delivery: str = DELIVERY, trace: str | None = TRACE, body: str = "On its way.\n"
) -> bytes:
    """The mail as it went out."""
    content = MailContent(
        sender="Shop <shop@example.org>", to=(f"Ada Lovelace <{recipient}>",), subject="Grüße", text=body
    )
    return compose(content, delivery_id=delivery, date_ms=1_732_400_000_123, trace=trace)


def headers_of(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[0] + b"\r\n"


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def postfix(recipient: str = ADA, message: bytes | None = None, **fields: str) -> bytes:
    """Postfix 3: a text, the status, the whole message. `fields` take the place of those of the status."""
    status = {
        "Final-Recipient": f"rfc822; {recipient}",
        "Original-Recipient": f"rfc822;{recipient}",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.example.com",
        "Diagnostic-Code": f"smtp; 550 5.1.1 <{recipient}>: Recipient address rejected: User\n"
        "    unknown in virtual mailbox table",
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    lines = "\n".join(f"{name}: {value}" for name, value in status.items() if value)
    head = f"""Received: by mail.example.org (Postfix)
	id 4Z1xYz0abc; Sat, 23 Nov 2024 22:13:21 +0000 (UTC)
Date: Sat, 23 Nov 2024 22:13:21 +0000 (UTC)
From: MAILER-DAEMON@mail.example.org (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
To: bounces@mail.example.org
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
	boundary="4Z1xYz0abc.1732400001/mail.example.org"
Content-Transfer-Encoding: 8bit

This is a MIME-encapsulated message.

--4Z1xYz0abc.1732400001/mail.example.org
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail system at host mail.example.org.

<{recipient}>: host mx.example.com said: 550 5.1.1 User unknown

--4Z1xYz0abc.1732400001/mail.example.org
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.example.org
X-Postfix-Queue-ID: 4Z1xYz0abc
X-Postfix-Sender: rfc822; bounces@mail.example.org
Arrival-Date: Sat, 23 Nov 2024 22:13:20 +0000 (UTC)

{lines}

--4Z1xYz0abc.1732400001/mail.example.org
Content-Description: Undelivered Message
Content-Type: message/rfc822
Content-Transfer-Encoding: 8bit

"""
    return (
        crlf(head) + (mail() if message is None else message) + crlf("\n--4Z1xYz0abc.1732400001/mail.example.org--\n")
    )


def exim() -> bytes:
    """Exim 4: status 5.0.0 whatever happened, the headers only."""
    head = f"""From: Mail Delivery System <Mailer-Daemon@mx.example.com>
To: bounces@mail.example.org
Content-Type: multipart/report; report-type=delivery-status; boundary=1732400001-eximdsn-512478
MIME-Version: 1.0
Subject: Mail delivery failed: returning message to sender

--1732400001-eximdsn-512478
Content-type: text/plain; charset=us-ascii

This message was created automatically by mail delivery software.

  {ADA}
    host mx.example.com [192.0.2.1]
    SMTP error from remote mail server after RCPT TO:<{ADA}>:
    550 5.1.1 no such mailbox

--1732400001-eximdsn-512478
Content-type: message/delivery-status

Reporting-MTA: dns; mx.example.com

Action: failed
Final-Recipient: rfc822;{ADA}
Status: 5.0.0
Remote-MTA: dns; mx.example.com
Diagnostic-Code: smtp; 550 5.1.1 no such mailbox

--1732400001-eximdsn-512478
Content-type: text/rfc822-headers

Return-path: <bounces@mail.example.org>
"""
    return crlf(head) + headers_of(mail()) + crlf("\n--1732400001-eximdsn-512478--\n")


def exchange() -> bytes:
    """Exchange Online: multipart/report without much order, the status in base64, no text that is plain."""
    status = crlf(f"""Reporting-MTA: dns;AM0PR01MB1234.eurprd01.prod.exchangelabs.com
Received-From-MTA: dns;mail.example.org
Arrival-Date: Sat, 23 Nov 2024 22:13:21 +0000

Final-Recipient: rfc822;{ADA.capitalize()}
Action: failed
Status: 5.1.10
Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient {ADA} not found by SMTP address lookup

""")
    encoded = base64.encodebytes(status).decode()
    head = f"""From: <postmaster@example.com>
To: bounces@mail.example.org
Content-Type: multipart/report; report-type=delivery-status;
	boundary="9c0a5a3e-2b7b-4c53-8f4f-6d3f0c1f2e11"
X-MS-Exchange-Message-Is-Ndr:
Subject: Undeliverable: =?utf-8?B?R3LDvMOfZQ==?=

--9c0a5a3e-2b7b-4c53-8f4f-6d3f0c1f2e11
Content-Type: multipart/alternative; differences=Content-Type;
	boundary="a7b2"

--a7b2
Content-Type: text/plain; charset="us-ascii"
Content-Transfer-Encoding: quoted-printable

Your message to {ADA} couldn't be delivered.

--a7b2
Content-Type: text/html; charset="us-ascii"
Content-Transfer-Encoding: quoted-printable

<html><body>Your message couldn't be delivered.</body></html>

--a7b2--

--9c0a5a3e-2b7b-4c53-8f4f-6d3f0c1f2e11
Content-Type: message/delivery-status
Content-Transfer-Encoding: base64

{encoded}
--9c0a5a3e-2b7b-4c53-8f4f-6d3f0c1f2e11
Content-Type: message/rfc822

"""
    return crlf(head) + mail() + crlf("\n--9c0a5a3e-2b7b-4c53-8f4f-6d3f0c1f2e11--\n")


def gmail() -> bytes:
    """Gmail: a related part first, replies of many lines run together, the returned message whole."""
    head = f"""Return-Path: <>
From: Mail Delivery Subsystem <mailer-daemon@googlemail.com>
To: bounces@mail.example.org
Auto-Submitted: auto-replied
Subject: Delivery Status Notification (Failure)
Content-Type: multipart/report; boundary="000000000000a1b2c3062b"; report-type=delivery-status

--000000000000a1b2c3062b
Content-Type: multipart/related; boundary="000000000000a1b2c30620"

--000000000000a1b2c30620
Content-Type: text/html; charset="UTF-8"

<p>Address not found</p>

--000000000000a1b2c30620--

--000000000000a1b2c3062b
Content-Type: message/delivery-status

Reporting-MTA: dns; googlemail.com
Arrival-Date: Sat, 23 Nov 2024 14:13:21 -0800 (PST)
X-Original-Message-ID: <{DELIVERY}@example.org>

Final-Recipient: rfc822; {ADA}
Action: failed
Status: 5.1.1
Remote-MTA: dns; gmail-smtp-in.l.google.com. (142.250.1.26, the server for
 the domain example.com.)
Diagnostic-Code: smtp; 550-5.1.1 The email account that you tried to reach does not exist. Please try
 550-5.1.1 double-checking the recipient's email address for typos. For more
 550 5.1.1 information, go to https://support.google.com/mail/?p=NoSuchUser
Last-Attempt-Date: Sat, 23 Nov 2024 14:13:21 -0800 (PST)

--000000000000a1b2c3062b
Content-Type: message/rfc822

"""
    return crlf(head) + mail() + crlf("\n--000000000000a1b2c3062b--\n")


def ses() -> bytes:
    """Amazon SES: headers of the original in a part of their own, in quoted-printable."""
    head = f"""From: MAILER-DAEMON@eu-west-1.amazonses.com
To: bounces@mail.example.org
Subject: Delivery Status Notification (Failure)
MIME-Version: 1.0
Content-Type: multipart/report;
 boundary="----=_Part_1_2.3"; report-type=delivery-status

------=_Part_1_2.3
Content-Type: text/plain; charset=us-ascii
Content-Transfer-Encoding: 7bit

An error occurred while trying to deliver the mail to the following recipients:
{ADA}

------=_Part_1_2.3
Content-Type: message/delivery-status
Content-Transfer-Encoding: quoted-printable

Reporting-MTA: dns; a4-1.smtp-out.eu-west-1.amazonses.com

Final-Recipient: rfc822; {ADA.replace("@", "=40")}
Diagnostic-Code: smtp; 550 5.1.1 user =
unknown
Action: failed
Status: 5.1.1

------=_Part_1_2.3
Content-Type: text/rfc822-headers

"""
    return crlf(head) + headers_of(mail()) + crlf("\n------=_Part_1_2.3--\n")


def delayed() -> bytes:
    """Postfix, after four hours."""
    return postfix(
        Action="delayed",
        Status="4.4.1",
        Diagnostic_Code="X-Postfix; connect to mx.example.com[192.0.2.1]:25: timed out",
        Will_Retry_Until="Thu, 28 Nov 2024 22:13:20 +0000 (UTC)",
    )


def several() -> bytes:
    """Three recipients in one report: one reached, one passed on, ours failed."""
    more = "\n\n".join(
        [
            "rfc822; bob@example.com\nAction: delivered\nStatus: 2.0.0",
            "Final-Recipient: rfc822; carol@example.com\nAction: relayed (to a server without DSN)\nStatus: 2.0.0",
            f"Final-Recipient: rfc822; {ADA}\nAction: failed\nStatus: 5.2.2\n"
            "Diagnostic-Code: smtp; 552 5.2.2 mailbox full",
        ]
    )
    gone = dict.fromkeys(("Original_Recipient", "Action", "Status", "Remote_MTA", "Diagnostic_Code"), "")
    return postfix(Final_Recipient=more, **gone)


def out_of_office() -> bytes:
    return crlf(f"""From: {ADA}
To: bounces@mail.example.org
Subject: Out of office
Auto-Submitted: auto-replied
Content-Type: text/plain

I am away until Monday.
""")


FAILED = {"postfix": postfix, "exim": exim, "exchange": exchange, "gmail": gmail, "ses": ses}
EVERY = {**FAILED, "delayed": delayed, "several": several}
