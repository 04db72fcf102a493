"""What the witness reads out of a message."""

from __future__ import annotations

import hashlib

from postlane.local.practice.message import look, unstuff


def test_ids_are_found_in_any_case_and_folded() -> None:
    seen = look(b"MESSAGE-ID:\r\n <one@x>\r\nx-postlane-delivery: d1\r\nSubject: s\r\n\r\nMessage-ID: <two@x>\r\n")
    assert (seen.message_id, seen.delivery) == ("<one@x>", "d1")


def test_the_body_is_not_searched() -> None:
    seen = look(b"Subject: s\r\n\r\nX-Postlane-Delivery: no\r\nMessage-ID: <no>\r\n")
    assert (seen.message_id, seen.delivery) == (None, None)


def test_a_header_that_only_ends_like_ours_is_not_ours() -> None:
    assert look(b"Old-Message-ID: <no>\r\n\r\n").message_id is None


def test_a_message_without_a_body_or_with_odd_bytes() -> None:
    assert look(b"Message-ID: <only@x>\r\n").message_id == "<only@x>"
    assert look(b"").size == 0
    assert look(b"Message-ID: <\xff@x>\r\n\r\n").message_id == "<\\xff@x>"


def test_digest_and_size_are_of_all_bytes() -> None:
    body = b"Subject: s\r\n\r\nhello\r\n"
    assert look(body).sha256 == hashlib.sha256(body).hexdigest()
    assert look(body).size == len(body)


def test_dots_are_unstuffed_at_line_starts_only() -> None:
    assert unstuff(b"..a\r\nb..c\r\n..\r\n...d\r\n") == b".a\r\nb..c\r\n.\r\n..d\r\n"
    assert unstuff(b"a\n.b\r\n") == b"a\n.b\r\n"
