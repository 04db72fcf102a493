"""A mailer as Celery's documentation would have it: acks_late, automatic retry. Runs in .venv-compare."""

from __future__ import annotations

import os
import smtplib

from celery import Celery

app = Celery("mailer", broker=os.environ["COMPARE_BROKER"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    # An hour by default; the run would have to wait for it after every killed worker.
    broker_transport_options={"visibility_timeout": 15},
)
_connection: smtplib.SMTP | None = None


@app.task(name="deliver", autoretry_for=(OSError, smtplib.SMTPException), default_retry_delay=1, max_retries=None)
def deliver(recipient: str) -> None:
    global _connection
    body = f"From: shop@example.org\r\nTo: {recipient}\r\nSubject: Hello\r\n\r\nHello\r\n"
    try:
        if _connection is None:
            _connection = smtplib.SMTP("127.0.0.1", int(os.environ["COMPARE_SMTP_PORT"]))
        _connection.sendmail("shop@example.org", [recipient], body)
    except (OSError, smtplib.SMTPException):
        _connection = None
        raise


if __name__ == "__main__":
    import sys

    for line in sys.stdin:
        deliver.delay(line.strip())
