"""What is written first: poll Kafka, send with aiosmtplib, commit once a second. Runs in .venv-compare.

A failed send is tried again until it succeeds. Arguments: bootstrap servers, topic, SMTP port, connections.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiosmtplib
from confluent_kafka import Consumer


async def main(bootstrap: str, topic: str, port: int, connections: int) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"{topic}-mailer",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
        }
    )
    consumer.subscribe([topic])
    pool: asyncio.Queue[aiosmtplib.SMTP] = asyncio.Queue()
    for _ in range(connections):
        pool.put_nowait(aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False))

    async def send(recipient: str) -> None:
        body = f"From: shop@example.org\r\nTo: {recipient}\r\nSubject: Hello\r\n\r\nHello\r\n"
        while True:
            smtp = await pool.get()
            try:
                if not smtp.is_connected:
                    await smtp.connect()
                await smtp.sendmail("shop@example.org", [recipient], body)
                return
            except (aiosmtplib.SMTPException, OSError):
                smtp.close()
                await asyncio.sleep(0.1)
            finally:
                pool.put_nowait(smtp)

    committed = time.monotonic()
    sent = False
    while True:
        messages = await asyncio.to_thread(consumer.consume, 100, 0.1)
        found = [json.loads(m.value()) for m in messages if m.error() is None]
        if found:
            await asyncio.gather(*(send(mail["to"]) for mail in found))
            sent = True
        if sent and time.monotonic() - committed >= 1.0:
            consumer.commit(asynchronous=False)
            committed, sent = time.monotonic(), False


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
