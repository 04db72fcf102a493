"""The list that the demo imports: the same rows for the same number, in several scripts, and not all of them good.

`write_list(folder, 2000)` makes `recipients.csv`, `invoices.ndjson` and `suppressed.csv`, and says by id what has to
come of each row.
"""

from __future__ import annotations

import base64
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

_GIVEN = """
Ada Grace Zoë Łukasz Søren Björn Jürgen Anaïs Chloë Renée José Íñigo Ðorđe Şebnem Nguyễn Thị Ngọc Κλειώ Νίκος
Ольга Дмитро Ірина Анна Юрій מרים דוד فاطمة يوسف महेश प्रिया สมชาย 花子 太郎 美咲 小明 丽华 민준 서연 አበበ თამარ Արամ
"""
_FAMILY = """
Lovelace Hopper O'Neil Müller Święcicki Ångström Øster Núñez Çelik Đặng Παπαδοπούλου Иванова Шевченко כהן حسن
शर्मा ใจดี 山田 佐藤 王 李 김 박 ተስፋዬ ბერიძე Պետրոսյան Smith-Jones d'Arcy
"""
GIVEN, FAMILY = _GIVEN.split(), _FAMILY.split()
CITIES = ("Zürich", "København", "İzmir", "München", "Αθήνα", "Київ", "القاهرة", "東京", "서울", "São Paulo", "Kraków")
DOMAINS = ("example.com", "example.org", "mail.example.net", "bücher.example")
COLUMNS = ("id", "email", "name", "city", "points", "offer")

BLOCKED_DOMAIN = "blocked.example"  # both providers refuse it for policy until the cause is cleared
NOBODY = "nobody"  # addresses that begin so do not exist: 550 5.1.1
NOT_ADDRESSES = ("", "no-at-sign", "two@@example.com", "spaces in@example.com", "@example.com", "x@-bad-.example")
ATTACHMENTS = 12


@dataclass(slots=True)
class Expected:
    """What has to come of the list. Idempotency keys (the rows' ids) by kind; `rejected` counts rows without a mail."""

    ordinary: list[str] = field(default_factory=list)
    bounced: list[str] = field(default_factory=list)
    suppressed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)  # rows that stand in the list twice; also in `ordinary`
    rejected: int = 0

    @property
    def keys(self) -> list[str]:
        """Every row that is a mail, once."""
        return [*self.ordinary, *self.bounced, *self.suppressed, *self.blocked]


def write_list(folder: Path, count: int) -> Expected:
    """Write the three files; `count` rows in recipients.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = Expected()
    rows = [_row(n, count, expected) for n in range(1, count + 1)]
    twice = rows[::200]
    for row in twice:
        if row[0] in expected.ordinary:
            expected.repeated.append(row[0])
    rows[-len(twice) :] = twice  # the end of the list says again what stood at its beginning
    kept = {row[0] for row in rows}
    for kind in (expected.ordinary, expected.bounced, expected.suppressed, expected.blocked):
        kind[:] = [key for key in kind if key in kept]
    expected.rejected = sum(1 for row in rows if row[1] in NOT_ADDRESSES)
    with (folder / "recipients.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    suppressed = set(expected.suppressed)
    addresses = [row[1] for row in rows if row[0] in suppressed]
    lines = ["email,reason", *(f"{address},unsubscribed" for address in addresses)]
    (folder / "suppressed.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected.ordinary += _write_invoices(folder / "invoices.ndjson")
    return expected


def _row(n: int, count: int, expected: Expected) -> tuple[str, ...]:
    key = f"spring-{n:05d}"
    name = f"{GIVEN[n % len(GIVEN)]} {FAMILY[(n * 7) % len(FAMILY)]}"
    domain = DOMAINS[n % len(DOMAINS)]
    address = f"customer{n:05d}@{domain}"
    if n % 80 == 40:
        address = NOT_ADDRESSES[n // 80 % len(NOT_ADDRESSES)]
    elif n % 100 == 17:
        address = f"{NOBODY}{n:05d}@{domain}"
        expected.bounced.append(key)
    elif n % 100 == 33:
        expected.suppressed.append(key)
    elif n % 100 == 57:
        address = f"customer{n:05d}@{BLOCKED_DOMAIN}"
        expected.blocked.append(key)
    else:
        expected.ordinary.append(key)
    offer = ("10 % für Sie", "50 ₽ скидка", "半額セール", "عرض خاص", "🎁 free <shipping> & more")[n % 5]
    return key, address, name, CITIES[n % len(CITIES)], str(n * 37 % 5000), offer


def _write_invoices(path: Path) -> list[str]:
    """A dozen mails with a file each; returns their keys."""
    keys = []
    with path.open("w", encoding="utf-8") as file:
        for n in range(1, ATTACHMENTS + 1):
            body = "\n".join(f"{n}-{line};Größe {line};{line * n},00 €" for line in range(1, 40))
            key = f"invoice-{n:03d}"
            mail = {
                "key": key,
                "to": f"{FAMILY[n % 8].lower()[0]}.accounts{n}@example.com",
                "subject": f"Rechnung № {n} – 請求書",
                "text": f"Guten Tag {GIVEN[n]},\n\nin der Anlage finden Sie Rechnung {n}.\n",
                "attachments": [
                    {
                        "filename": f"Rechnung-{n}-März.csv",
                        "content_type": "text/csv; charset=utf-8",
                        "content": base64.b64encode(body.encode()).decode("ascii"),
                    }
                ],
            }
            keys.append(key)
            file.write(json.dumps(mail, ensure_ascii=False) + "\n")
    return keys
