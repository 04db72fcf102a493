"""Credentials that expire at run time: what the drill of that name rests on."""

from __future__ import annotations

import os
import signal
import smtplib
import time
from pathlib import Path

import pytest

from postlane.local.practice import PracticeProcess

WAIT_S = 20.0


def _login(practice: PracticeProcess, user: str, password: str) -> smtplib.SMTP:
    client = smtplib.SMTP(practice.host, practice.smtp_port, timeout=WAIT_S)
    try:
        client.ehlo()
        client.login(user, password)
    except smtplib.SMTPException:
        client.close()
        raise
    return client


def _rotated(practice: PracticeProcess, user: str, password: str) -> None:
    assert practice.pid is not None
    os.kill(practice.pid, signal.SIGHUP)
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            _login(practice, user, password).close()
            return
        except smtplib.SMTPAuthenticationError:
            assert time.monotonic() < deadline, "the new credentials were not taken"
            time.sleep(0.02)


def test_sighup_takes_the_new_password_and_logs_out_who_used_the_old_one(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("ada:first\nbob:first\n")
    with PracticeProcess(tmp_path, ("primary",), ("--auth-file", str(users))) as practice:
        ada, bob = _login(practice, "ada", "first"), _login(practice, "bob", "first")
        users.write_text("ada:second\nbob:first\n")
        _rotated(practice, "ada", "second")
        try:
            code = ada.noop()[0]
        except smtplib.SMTPServerDisconnected:
            code = 421
        assert code == 421
        assert bob.noop()[0] == 250
        with pytest.raises(smtplib.SMTPAuthenticationError):
            _login(practice, "ada", "first")
        bob.close()


def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("ada:first\n")
    with PracticeProcess(tmp_path, ("primary",), ("--auth-file", str(users))) as practice:
        users.write_text("nothing\n")
        _rotated(practice, "ada", "first")
        users.unlink()
        _rotated(practice, "ada", "first")
