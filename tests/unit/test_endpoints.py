"""Requests go to the server with the least to do; a dead one costs nothing but its share."""

from __future__ import annotations

import asyncio

import pytest

from speculators_patches.endpoints import Endpoints, NoServer


def test_work_goes_to_whoever_is_free() -> None:
    async def play() -> list[str]:
        servers = Endpoints(["a", "b", "a"], wait_s=1)
        taken = [await servers.acquire() for _ in range(4)]
        servers.release("b")
        servers.release("b")
        return [*taken, await servers.acquire(), await servers.acquire(), await servers.acquire()]

    assert asyncio.run(play()) == ["a", "b", "a", "b", "b", "b", "a"]


def test_a_dead_one_is_left_out_and_comes_back() -> None:
    now = [0.0]

    async def play() -> list[str]:
        servers = Endpoints(["a", "b"], wait_s=60, clock=lambda: now[0])
        servers.unreachable("a", OSError("refused"))
        alone = [await servers.acquire() for _ in range(3)]
        now[0] = 100.0
        return [*alone, await servers.acquire()]

    assert asyncio.run(play()) == ["b", "b", "b", "a"]


def test_all_dead_for_too_long_is_one_sentence() -> None:
    now = [0.0]

    async def play() -> None:
        servers = Endpoints(["http://a", "http://b"], wait_s=60, clock=lambda: now[0])
        for url in servers.urls:
            servers.unreachable(url, OSError("refused"))
        now[0] = 59.0
        assert await servers.acquire() == "http://a", "its pause is over, it may be up"
        now[0] = 60.0
        with pytest.raises(NoServer, match=r"no server has answered for 60 s \(http://a, http://b"):
            await servers.acquire()
        servers.answered("http://b")
        assert await servers.acquire() == "http://b"

    asyncio.run(play())
