"""Healthy: an asyncio server with as many requests in flight as its semaphore lets in; the tasks end."""

import asyncio
import random
import sys
import time

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
rng = random.Random(3)


async def request(gate):
    async with gate:
        body = bytearray(rng.randrange(50_000, 400_000))
        await asyncio.sleep(rng.uniform(0.05, 0.3))
        return len(body)


async def main():
    gate = asyncio.Semaphore(32)
    running = set()
    while time.monotonic() < END:
        task = asyncio.get_running_loop().create_task(request(gate))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(0.01)
    await asyncio.gather(*running)


asyncio.run(main())
