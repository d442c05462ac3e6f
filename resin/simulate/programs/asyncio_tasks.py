"""Leak: a server starts a task per request that waits for an answer which never comes, and keeps the task."""

import asyncio
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
background = set()


async def notify(body, acknowledged):
    await acknowledged  # nobody sets it, and there is no timeout
    return len(body)


async def request(loop):
    body = bytearray(50_000)  # culprit
    task = loop.create_task(notify(body, loop.create_future()))  # culprit
    background.add(task)  # culprit
    task.add_done_callback(background.discard)


async def main():
    loop = asyncio.get_running_loop()
    while time.monotonic() < END:
        await request(loop)
        await asyncio.sleep(0.03)


asyncio.run(main())
