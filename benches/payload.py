"""What every peer carries: the event of the targets, plain and as a slots dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TOPIC = "orders:created"

PAYLOAD: dict[str, Any] = {
    "order_id": 1234567,
    "customer": "customer-00042",
    "amount": 199.95,
    "currency": "EUR",
    "paid": True,
    "items": [{"sku": "A-1001", "count": 2}, {"sku": "B-2002", "count": 1}],
    "note": "please ring twice, the bell is so quiet",
    "coupon": None,
}

ENVELOPE: dict[str, Any] = {
    "topic": TOPIC,
    "id": "0b9c7a3e-6f0e-4c55-9d3f-1c9b6d1f2a34",
    "timestamp": "2025-01-02T03:04:05.678901+00:00",
    "source": "web-1",
    "payload": PAYLOAD,
}

TEN_KILOBYTES: dict[str, Any] = {
    "orders": [{**PAYLOAD, "order_id": 1_234_567 + number} for number in range(57)]
}


@dataclass(frozen=True, slots=True)
class PlainEvent:
    """The cheapest event that a peer without an event class could build per publish."""

    type: str
    topic: str
    payload: Any
