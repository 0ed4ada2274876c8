"""The gate before Chroma: what comes while it is shut waits, and it shuts only when nobody is inside."""

import asyncio

from indexer.gate import Gate


async def test_work_waits_while_the_gate_is_shut_and_the_gate_for_work_that_is_inside() -> None:
    gate, log = Gate(), list[str]()
    inside, leave, shut, reopen = (asyncio.Event() for _ in range(4))

    async def work() -> None:
        async with gate.passing():
            log.append("in")
            inside.set()
            await leave.wait()
            async with gate.passing():  # what belongs to it is let in
                log.append("further in")

    async def hold() -> None:
        async with gate.shut():
            log.append("shut")
            shut.set()
            await reopen.wait()

    async def late() -> None:
        async with gate.passing():
            log.append("late")

    first = asyncio.create_task(work())
    await inside.wait()
    holding = asyncio.create_task(hold())
    await asyncio.sleep(0)
    second = asyncio.create_task(late())
    await asyncio.sleep(0)
    assert log == ["in"]
    leave.set()
    await shut.wait()
    await first
    assert log == ["in", "further in", "shut"]
    reopen.set()
    await asyncio.gather(holding, second)
    assert log[-1] == "late"


async def test_the_gate_opens_again_when_the_block_fails() -> None:
    gate = Gate()
    try:
        async with gate.shut():
            raise ValueError
    except ValueError:
        async with asyncio.timeout(5), gate.passing():
            return
    raise AssertionError
