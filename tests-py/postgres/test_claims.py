"""A claim that is sent again because its answer was lost."""

from __future__ import annotations

from typing import Any

import pytest

from eventbus import Bus
from servers.postgres import PostgresServer

GROUP = "group"


@pytest.fixture
async def claim(bus: Bus, server: PostgresServer, schema: str) -> Any:
    """Return a function that claims as the backend does: token, id and crashes of each."""
    await bus.declare_group(GROUP, "t")
    await bus.publish_many([("t", number) for number in range(5)])

    def claimed(number: int, *, most: int = 2, again: bool = False) -> list[tuple[Any, ...]]:
        return sorted(
            server.execute(
                f"select token, id, crashes from {schema}.claim("
                "%s, '{}', '{}', %s, 60000000, 5, null, %s, %s)",
                GROUP,
                most,
                number,
                again,
            )
        )

    return claimed


async def test_it_hands_out_once_more_what_it_took(bus: Bus, claim: Any) -> None:
    first, other = claim(1), claim(2)
    assert len({token for token, _, _ in first + other}) == 4
    # Nobody is to blame: neither the leases nor what they count are new.
    assert claim(1, again=True) == first
    assert claim(1, again=True) == first
    assert {crashes for _, _, crashes in first} == {0}
    [group] = (await bus.inspect())["groups"]
    assert (group["in_flight"], group["ready"]) == (4, 1)


async def test_one_that_never_arrived_claims(claim: Any) -> None:
    first = claim(1)
    never = claim(2, again=True)
    assert len(never) == 2
    assert not {token for token, _, _ in never} & {token for token, _, _ in first}
    assert len(claim(3, again=True)) == 1
    assert claim(4, again=True) == []
