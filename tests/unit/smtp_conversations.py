"""What servers say, turn by turn, and what has to come of it."""

from __future__ import annotations

from smtp_conversation import PIPELINED, PLAIN, Conversation


def group(ref: str) -> str:
    """The commands of a mail, with `/` for CRLF."""
    return f"MAIL FROM:<{ref}@from.example>/RCPT TO:<{ref}@to.example>/DATA/"


def mail(ref: str) -> str:
    return f"MAIL FROM:<{ref}@from.example>/"


def rcpt(ref: str) -> str:
    return f"RCPT TO:<{ref}@to.example>/"


def sent(ref: str) -> str:
    return f"body {ref}/./"


OK3 = "250 ok/250 ok/354 go/"
CONVERSATIONS = [
    Conversation(
        "pipelined, three mails, one round trip each",
        PIPELINED,
        "ABC",
        (
            (group("A"), OK3),
            (sent("A") + group("B"), "250 2.0.0 queued A/" + OK3),
            (sent("B") + group("C"), "250 2.0.0 queued B/" + OK3),
            (sent("C"), "250 2.0.0 queued C/"),
        ),
        (
            "body? A",
            "accepted A 250 2.0.0 queued A",
            "body? B",
            "accepted B 250 2.0.0 queued B",
            "body? C",
            "accepted C 250 2.0.0 queued C",
        ),
    ),
    Conversation(
        "command by command, two mails",
        PLAIN,
        "AB",
        (
            (mail("A"), "250 ok/"),
            (rcpt("A"), "250 ok/"),
            ("DATA/", "354 go/"),
            (sent("A"), "250 ok A/"),
            (mail("B"), "250-ok/250 ok/"),
            (rcpt("B"), "251 ok/"),
            ("DATA/", "354 go/"),
            (sent("B"), "554 5.7.1 spam/"),
        ),
        ("body? A", "accepted A 250 ok A", "body? B", "refused B dot 554 5.7.1 spam"),
    ),
    Conversation(
        "MAIL refused: nothing is open, no RSET",
        PIPELINED,
        "AB",
        ((group("A"), "550 5.7.1 no/503 mail first/503 rcpt first/"), (group("B"), OK3), (sent("B"), "250 ok/")),
        ("refused A mail 550 5.7.1 no", "body? B", "accepted B 250 ok"),
    ),
    Conversation(
        "MAIL refused, RCPT taken all the same: RSET",
        PIPELINED,
        "AB",
        ((group("A"), "550 no/250 ok/503 no/"), ("RSET/" + group("B"), "250 ok/" + OK3), (sent("B"), "250 ok/")),
        ("refused A mail 550 no", "body? B", "accepted B 250 ok"),
    ),
    Conversation(
        "MAIL refused, RCPT and DATA taken: a lone dot would deliver an empty mail",
        PIPELINED,
        "AB",
        ((group("A"), "550 no/250 ok/354 go/"),),
        ("refused A mail 550 no", "not begun B mail", "closed: withdrawn"),
    ),
    Conversation(
        "RCPT refused, DATA refused: RSET goes with the next group",
        PIPELINED,
        "AB",
        (
            (group("A"), "250 ok/550 5.1.1 who/554 no valid recipients/"),
            ("RSET/" + group("B"), "250 ok/" + OK3),
            (sent("B"), "250 ok/"),
        ),
        ("refused A rcpt 550 5.1.1 who", "body? B", "accepted B 250 ok"),
    ),
    Conversation(
        "RCPT refused, DATA got 354: a lone dot, its reply swallowed, no RSET",
        PIPELINED,
        "AB",
        (
            (group("A"), "250 ok/550 5.1.1 who/354 go/"),
            ("./", "554 no valid recipients/"),
            (group("B"), OK3),
            (sent("B"), "250 ok/"),
        ),
        ("refused A rcpt 550 5.1.1 who", "body? B", "accepted B 250 ok"),
    ),
    Conversation(
        "lone dot accepted: still refused",
        PIPELINED,
        "A",
        ((group("A"), "250 ok/450 4.2.0 grey/354 go/"), ("./", "250 ok/")),
        ("refused A rcpt 450 4.2.0 grey",),
    ),
    Conversation(
        "DATA refused: RSET",
        PIPELINED,
        "AB",
        (
            (group("A"), "250 ok/250 ok/451 4.3.0 later/"),
            ("RSET/" + group("B"), "250 ok/" + OK3),
            (sent("B"), "250 ok/"),
        ),
        ("refused A data 451 4.3.0 later", "body? B", "accepted B 250 ok"),
    ),
    Conversation(
        "command by command: RCPT refused, RSET by itself",
        PLAIN,
        "AB",
        (
            (mail("A"), "250 ok/"),
            (rcpt("A"), "550 5.1.1 who/"),
            ("RSET/", "250 ok/"),
            (mail("B"), "250 ok/"),
            (rcpt("B"), "250 ok/"),
            ("DATA/", "354 go/"),
            (sent("B"), "250 ok/"),
        ),
        ("refused A rcpt 550 5.1.1 who", "body? B", "accepted B 250 ok"),
    ),
    Conversation(
        "RSET refused: the connection is out of step",
        PIPELINED,
        "AB",
        ((group("A"), "250 ok/550 who/503 no/"), ("RSET/" + group("B"), "500 what/")),
        ("refused A rcpt 550 who", "not begun B mail", "closed: protocol error"),
    ),
    Conversation(
        "dot refused, the next mail is not touched by it",
        PIPELINED,
        "AB",
        ((group("A"), OK3), (sent("A") + group("B"), "554 5.6.0 bad/" + OK3), (sent("B"), "250 ok/")),
        ("body? A", "refused A dot 554 5.6.0 bad", "body? B", "accepted B 250 ok"),
    ),
    Conversation(
        "dot refused, nothing behind it: RSET for servers that keep the transaction",
        PLAIN,
        "AB",
        (
            (mail("A"), "250 ok/"),
            (rcpt("A"), "250 ok/"),
            ("DATA/", "354 go/"),
            (sent("A"), "451 later/"),
            ("RSET/", "250 ok/"),
            (mail("B"), "250 ok/"),
        ),
        ("body? A", "refused A dot 451 later"),
    ),
    Conversation(
        "dot refused and the transaction kept: the next mail did nothing wrong",
        PIPELINED,
        "AB",
        ((group("A"), OK3), (sent("A") + group("B"), "451 later/503 nested MAIL/250 ok/354 go/")),
        ("body? A", "refused A dot 451 later", "not begun B rcpt", "closed: protocol error"),
    ),
    Conversation(
        "503 to a first MAIL is a refusal",
        PIPELINED,
        "A",
        ((group("A"), "503 5.5.1 authenticate/503 no/503 no/"),),
        ("refused A mail 503 5.5.1 authenticate",),
    ),
    Conversation(
        "421 to MAIL",
        PIPELINED,
        "AB",
        ((group("A"), "421 4.7.0 busy/"),),
        ("refused A mail 421 4.7.0 busy", "not begun B mail", "closed: server closing"),
    ),
    Conversation(
        "421 to DATA, more behind it ignored",
        PIPELINED,
        "A",
        ((group("A"), "250 ok/250 ok/421-4.7.0 going/421 4.7.0 down/250 ok/"),),
        ("refused A data 421 4.7.0 going down", "closed: server closing"),
    ),
    Conversation(
        "421 after 354",
        PIPELINED,
        "AB",
        ((group("A"), OK3 + "421 4.4.2 too slow/"),),
        ("body? A", "not begun A data", "not begun B mail", "closed: server closing"),
    ),
    Conversation(
        "421 to the dot: not accepted, and it says so",
        PIPELINED,
        "AB",
        ((group("A"), OK3), (sent("A") + group("B"), "421 4.3.2 down/")),
        ("body? A", "refused A dot 421 4.3.2 down", "not begun B mail", "closed: server closing"),
    ),
    Conversation(
        "421 after a refused RCPT",
        PIPELINED,
        "A",
        ((group("A"), "250 ok/550 who/421 too many/"),),
        ("refused A rcpt 550 who", "closed: server closing"),
    ),
    Conversation(
        "a reply before the dot cannot count for the dot",
        PIPELINED,
        "AB",
        ((group("A"), OK3 + "250 2.0.0 injected/"),),
        ("body? A", "not begun A data", "not begun B mail", "closed: protocol error"),
    ),
    Conversation(
        "bytes after the last reply",
        PIPELINED,
        "A",
        ((group("A"), OK3), (sent("A"), "250 ok/250 surplus/")),
        ("body? A", "accepted A 250 ok", "closed: protocol error"),
    ),
    Conversation(
        "250 to DATA",
        PIPELINED,
        "A",
        ((group("A"), "250 ok/250 ok/250 ok/"),),
        ("not begun A data", "closed: protocol error"),
    ),
    Conversation(
        "354 to the dot is no answer",
        PIPELINED,
        "A",
        ((group("A"), OK3), (sent("A"), "354 go/")),
        ("body? A", "in doubt A", "closed: protocol error"),
    ),
    Conversation(
        "334 to MAIL",
        PLAIN,
        "A",
        ((mail("A"), "334 auth/"),),
        ("not begun A mail", "closed: protocol error"),
    ),
    Conversation(
        "LF alone ends no line; the dot's reply is not understood",
        PIPELINED,
        "AB",
        ((group("A"), OK3), (sent("A") + group("B"), "250 ok\n250 ok\n")),
        ("body? A", "in doubt A", "not begun B mail", "closed: protocol error"),
    ),
    Conversation(
        "codes of one reply differ",
        PLAIN,
        "A",
        ((mail("A"), "250-ok/550 no/"),),
        ("not begun A mail", "closed: protocol error"),
    ),
    Conversation(
        "a code alone is a reply",
        PIPELINED,
        "A",
        ((group("A"), "250/250/354/"), (sent("A"), "250/")),
        ("body? A", "accepted A 250"),
    ),
    Conversation(
        "withdrawn when its body is wanted: the connection closes",
        PIPELINED,
        "AB",
        ((group("A"), OK3),),
        ("body? A", "not begun A data", "not begun B mail", "closed: withdrawn"),
        withdraw="A",
    ),
    Conversation(
        "withdrawn before 354: closed at the 354",
        PIPELINED,
        "A",
        ((group("A"), OK3),),
        ("not begun A mail", "closed: withdrawn"),
        withdraw_early="A",
    ),
    Conversation(
        "withdrawn and then refused: the connection lives",
        PIPELINED,
        "AB",
        (
            (group("A"), "250 ok/550 who/503 no/"),
            ("RSET/" + group("B"), "250 ok/" + OK3),
            (sent("B"), "250 ok/"),
        ),
        ("not begun A mail", "body? B", "accepted B 250 ok"),
        withdraw_early="A",
    ),
    Conversation(
        "the one ahead withdrawn before it was written",
        PIPELINED,
        "ABC",
        ((group("A"), OK3), (sent("A") + group("C"), "250 ok/" + OK3), (sent("C"), "250 ok/")),
        ("not begun B mail", "body? A", "accepted A 250 ok", "body? C", "accepted C 250 ok"),
        withdraw_early="B",
    ),
]
