"""Clients that give up: requests for hidden states whose connections are closed at once.

python -m tests.e2e.abandoned URL MODEL TOKENS    # asks a server, and says whether it still answers
"""

from __future__ import annotations

import asyncio
import sys

import httpx


async def _give_up(url: str, model: str, tokens: int, requests: int, after_s: float) -> int:
    """Sends them all at once and closes what is open `after_s` later; how many were answered."""
    limits = httpx.Limits(max_connections=requests)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        asked = [
            asyncio.create_task(
                client.post(
                    f"{url}/v1/completions",
                    json={"model": model, "prompt": [5 + at % 7] * tokens, "max_tokens": 1},
                )
            )
            for at in range(requests)
        ]
        done, left = await asyncio.wait(asked, timeout=after_s)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return len(done)


def storms(url: str, model: str, tokens: int, requests: int = 120) -> list[int]:
    """Several, given up sooner and later; how many of each were answered.

    Raises:
        httpx.HTTPError: the server does not answer behind one.
    """
    answered = []
    for after_s in (0.3, 0.1, 0.6, 0.2):
        answered.append(asyncio.run(_give_up(url, model, tokens, requests, after_s)))
        reply = httpx.post(
            f"{url}/v1/completions",
            json={"model": model, "prompt": [5] * tokens, "max_tokens": 1},
            timeout=120,
        )
        reply.raise_for_status()
    return answered


if __name__ == "__main__":
    print(storms(sys.argv[1], sys.argv[2], int(sys.argv[3])), flush=True)
