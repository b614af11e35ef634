"""Testing: a clock turned by hand, a recorder, and no sleeps. `pytest` runs this file, too."""

import asyncio
from datetime import timedelta

from eventbus import RetryPolicy
from eventbus.testing import ManualBus, Recorder, manual_bus


async def test_a_reminder_comes_after_a_day(manual: ManualBus) -> None:
    """`manual` is a fixture of the pytest plugin."""
    sent = Recorder()
    await manual.consume("reminder", sent, group="mail")
    await manual.publish("reminder", {"to": "ann"}, delay=timedelta(days=1))

    await manual.advance(timedelta(hours=23))
    assert sent.payloads == []
    await manual.advance(timedelta(hours=1))
    assert sent.payloads == [{"to": "ann"}]


async def test_a_failing_handler_is_tried_three_times(manual: ManualBus) -> None:
    """Retries wait for the same clock."""

    def fail(_event: object) -> None:
        raise ConnectionError("no network")

    tried = Recorder(then=fail)
    await manual.consume("job", tried, group="jobs", retry=RetryPolicy(max_attempts=3))
    await manual.publish("job", {})
    await manual.wait_idle()  # the first attempt
    await manual.advance(60)
    await manual.advance(60)

    assert len(tried) == 3
    [letter] = await manual.dead_letters("jobs").list()
    assert (letter.reason, letter.attempts) == ("failed", 3)


async def main() -> None:
    """Run the tests without a test runner."""
    for test in (
        test_a_reminder_comes_after_a_day,
        test_a_failing_handler_is_tried_three_times,
    ):
        async with manual_bus() as bus:
            await test(bus)
            print("passed:", test.__name__)


if __name__ == "__main__":
    import logging

    logging.getLogger("eventbus.handlers").disabled = True
    asyncio.run(main())
