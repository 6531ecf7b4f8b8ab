"""The pool of servers: load, limits that follow what is borne, ejection, return, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from distill.errors import TeacherError
from distill.protocols import Completion
from distill.teachers import servers
from distill.teachers.openai import OpenAITeacher
from distill.teachers.servers import FAULTS, Broken, Busy, Overloaded, ServerPool, Unreachable
from distill.teachers.wire import root
from tests.asking import ask, complete, teacher
from tests.fake_server import Asked, FakeServer, Reply, chunk, error, sse, stream


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PAUSE_S", 0.02)


def pool(count: int = 1, well: Callable[[], bool] = lambda: True, **kwargs: Any) -> ServerPool:
    async def check(url: str) -> bool:
        return well()

    return ServerPool([f"http://s{i}" for i in range(count)], check, **kwargs)


async def use(
    pool: ServerPool, most: int = 100, *, got: int = 0, fault: TeacherError | None = None
) -> str:
    async with pool.lease(most) as lease:
        if got:
            lease.received(got)
        await asyncio.sleep(0)
        if fault:
            raise fault
        return lease.server.url


async def fail(pool: ServerPool, fault: TeacherError, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(TeacherError):
            await use(pool, fault=fault)


def rows(pool: ServerPool) -> list[dict[str, Any]]:
    return list(pool.stats()["servers"])


def test_load_is_measured_in_outstanding_tokens_and_not_in_requests() -> None:
    async def main() -> None:
        both = pool(2)
        async with contextlib.AsyncExitStack() as stack:
            long = await stack.enter_async_context(both.lease(100_000))
            short = [await stack.enter_async_context(both.lease(100)) for _ in range(5)]
            assert {lease.server.url for lease in short} == {"http://s1", "http://s0"} - {
                long.server.url
            }
            # What has arrived is no load any more.
            long.received(int(long.left))
            assert await use(both) == long.server.url
        assert all(row["in_flight"] == row["tokens"] == 0 for row in rows(both))

    asyncio.run(main())


def test_equal_servers_share_equally() -> None:
    async def main() -> list[str]:
        three = pool(3)
        return [await use(three, got=10) for _ in range(30)]

    used = asyncio.run(main())
    assert all(used.count(f"http://s{i}") == 10 for i in range(3))


def test_a_limit_halves_once_a_round_of_complaints_and_grows_while_it_is_reached() -> None:
    async def main() -> None:
        one = pool()
        (server,) = one.servers
        assert math.isinf(server.limit)
        busy = Busy("429", retry=True)
        results = [use(one, fault=busy if i % 2 else None, got=1) for i in range(64)]
        await asyncio.gather(*results, return_exceptions=True)
        assert server.limit >= 30  # 32 complaints of one round: one cut
        await fail(one, busy)
        low = server.limit
        assert low <= 1
        most = 0

        async def answered() -> None:
            nonlocal most
            async with one.lease(10) as lease:
                most = max(most, server.in_flight)
                lease.received(1)
                await asyncio.sleep(0)

        await asyncio.gather(*(answered() for _ in range(400)))
        assert server.limit > 10 * low
        assert 1 < most <= server.limit + 1
        grown = server.limit
        for _ in range(20):
            await use(one)
        assert server.limit == grown  # a limit that is not reached proves nothing

    asyncio.run(main())


def test_a_late_first_token_is_a_sign_of_overload() -> None:
    async def main() -> None:
        slow = pool(slow_s=0.01)
        async with slow.lease(10) as lease:
            await asyncio.sleep(0.03)
            lease.received(1)
        assert rows(slow)[0]["limit"] == 1

    asyncio.run(main())


def test_retry_after_holds_a_server_for_everybody() -> None:
    async def main() -> float:
        held = pool()
        await fail(held, Busy("429", retry=True, retry_after=0.15))
        begin = asyncio.get_running_loop().time()
        await asyncio.gather(*(use(held) for _ in range(3)))
        return asyncio.get_running_loop().time() - begin

    assert asyncio.run(main()) >= 0.14


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (Unreachable("refused", retry=True), servers.UNREACHABLE),
        (Broken("HTTP 500", retry=True), servers.FAULTS),
        (Overloaded("HTTP 503", retry=True), servers.FAULTS),
    ],
    ids=["unreachable", "broken", "overloaded"],
)
def test_a_server_is_left_out_after_faults_in_a_row_and_comes_back(
    fault: TeacherError, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = False

    async def main() -> None:
        nonlocal healthy
        one = pool(well=lambda: healthy)
        await fail(one, fault, times - 1)
        await use(one)
        await fail(one, fault, times - 1)
        assert rows(one)[0]["up"]
        await fail(one, fault)
        assert not rows(one)[0]["up"]
        waiting = asyncio.create_task(use(one))
        await asyncio.sleep(0.1)
        assert one.stats()["waiting"] == 1
        healthy = True
        assert await waiting == "http://s0"
        assert rows(one)[0]["up"]
        assert rows(one)[0]["ejected"] == 1
        await one.close()

    asyncio.run(main())
    assert "is left out (0 others stay)" in caplog.text
    assert "no server is left" in caplog.text
    assert "is back" in caplog.text


def test_one_bad_request_among_good_ones_ejects_nobody() -> None:
    async def main() -> None:
        one = pool()
        for _ in range(50):
            await fail(one, Broken("HTTP 500 for this prompt", retry=True))
            await use(one)
        await fail(one, TeacherError("the prompt is too long"), 50)
        assert rows(one)[0]["up"]
        assert rows(one)[0]["failed"] == 100

    asyncio.run(main())


def test_503_from_a_server_that_streams_is_overload_alone() -> None:
    async def main() -> None:
        one = pool()
        async with one.lease(100) as lease:
            lease.received(1)
            fault = Overloaded("HTTP 503", retry=True)
            await asyncio.gather(*(fail(one, fault) for _ in range(30)))
            assert rows(one)[0]["up"]
            assert rows(one)[0]["limit"] is not None

    asyncio.run(main())


def test_a_whole_answer_that_did_not_stream_leaves_no_stream_behind() -> None:
    async def main() -> None:
        one = pool()
        async with one.lease(100) as lease:
            lease.got = 50  # what the usage says, at the end
        await fail(one, Overloaded("HTTP 503", retry=True), times=FAULTS)
        assert not rows(one)[0]["up"]
        await one.close()

    asyncio.run(main())


def test_a_server_that_came_back_proves_itself_with_a_few_requests() -> None:
    async def main() -> None:
        one = pool()
        one.eject(one.servers[0], "for the test")
        first_token = asyncio.Event()
        most = 0

        async def work() -> None:
            nonlocal most
            async with one.lease(10) as lease:
                most = max(most, one.servers[0].in_flight)
                await first_token.wait()
                lease.received(1)
                await asyncio.sleep(0.01)

        works = [asyncio.create_task(work()) for _ in range(20)]
        while most < servers.PROBE:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert most == servers.PROBE
        first_token.set()
        await asyncio.gather(*works)
        assert most > servers.PROBE  # proven: no limit any more
        await one.close()

    asyncio.run(main())


def test_pauses_between_checks_grow_until_a_request_is_done() -> None:
    checks: list[float] = []

    def well() -> bool:
        checks.append(asyncio.get_running_loop().time())
        return len(checks) > 4

    async def main() -> None:
        one = pool(well=well)
        one.eject(one.servers[0], "for the test")
        await use(one)
        assert one.servers[0]._pause == servers.PAUSE_S
        await one.close()

    asyncio.run(main())
    gaps = [b - a for a, b in itertools.pairwise(checks)]
    assert gaps[-1] > 2 * gaps[0]


def test_with_all_servers_gone_it_waits_and_ends_after_the_stated_time() -> None:
    async def main() -> None:
        none = pool(2, well=lambda: False, outage_s=0.2)
        for server in none.servers:
            none.eject(server, f"{server.url} is on fire")
        with pytest.raises(TeacherError, match=r"answered for 0\.2 s.*on fire") as raised:
            await use(none)
        assert raised.value.fatal
        with pytest.raises(TeacherError, match=r"answered for 0\.2 s"):
            await use(none)
        await none.close()

    asyncio.run(main())


def test_whoever_is_cancelled_gives_its_place_back() -> None:
    async def main() -> None:
        one = pool()
        one.servers[0].limit = 1.0
        async with one.lease(10):
            waiting = [asyncio.create_task(use(one)) for _ in range(5)]
            await asyncio.sleep(0)
            for task in waiting[:4]:
                task.cancel()
        assert await waiting[4] == "http://s0"
        assert one.stats()["waiting"] == 0
        assert rows(one)[0]["in_flight"] == 0

    asyncio.run(main())


def test_health_is_asked_beside_the_version() -> None:
    assert root("http://a:8000/v1") == "http://a:8000"
    assert root("http://a/api/v2") == "http://a/api"
    assert root("http://a:8000") == "http://a:8000"


def test_a_killed_server_is_left_out_and_taken_back_when_it_is_there_again() -> None:
    answer: Callable[[Asked], Reply] = lambda _: sse([chunk({"content": "3"}, "stop")])  # noqa: E731

    async def persist(engine: OpenAITeacher) -> str:
        for _ in range(20):
            with contextlib.suppress(TeacherError):
                return (await engine.complete(ask())).text
        return "lost"

    async def main(one: FakeServer, two: FakeServer) -> None:
        engine = teacher(one, base_urls=[one.url, two.url])
        await engine.open()
        await asyncio.gather(*(persist(engine) for _ in range(10)))
        await asyncio.to_thread(two.__exit__)
        assert set(await asyncio.gather(*(persist(engine) for _ in range(20)))) == {"3"}
        assert [row["up"] for row in engine.stats()["servers"]] == [True, False]
        before = len(two.asked)
        await asyncio.to_thread(two.__enter__)
        while not engine.stats()["servers"][1]["up"]:
            await asyncio.sleep(0.02)
        assert set(await asyncio.gather(*(persist(engine) for _ in range(20)))) == {"3"}
        assert len(two.asked) > before
        assert "/health" in two.checked
        await engine.close()

    with FakeServer(answer) as one, FakeServer(answer) as two:
        asyncio.run(main(one, two))


def test_a_server_of_another_model_or_a_refused_key_is_left_out_for_good() -> None:
    class Guarded(FakeServer):
        def greet(self, asked: Asked) -> Reply | None:
            return error(401, "no")

    with (
        FakeServer(lambda _: stream("3")) as good,
        FakeServer(lambda _: stream("X"), models=["other"]) as other,
        Guarded(lambda _: stream("X")) as guarded,
    ):
        engine = teacher(good, base_urls=[other.url, guarded.url, good.url])
        found = complete(engine, *[ask() for _ in range(9)])
    assert {f.text for f in found if isinstance(f, Completion)} == {"3"}
    assert len(found) == len(good.asked) == 9


@pytest.mark.slow
def test_a_server_bears_less_than_is_asked_of_it() -> None:
    """More than 8 at once are refused: all are answered, and few tries are wasted."""

    async def persist(engine: OpenAITeacher) -> int:
        for tries in range(1, 60):
            with contextlib.suppress(TeacherError):
                await engine.complete(ask())
                return tries
        return 1000

    async def main(server: FakeServer) -> None:
        engine = teacher(server)
        await engine.open()
        tries = await asyncio.gather(*(persist(engine) for _ in range(100)))
        (row,) = engine.stats()["servers"]
        assert row["done"] == 100
        assert row["limit"] is not None
        assert row["ejected"] == 0
        assert sum(tries) < 700
        await engine.close()

    def answer(_: Asked) -> Reply:
        if server.now > 8:
            return error(429, "busy", retry_after="0.01")
        return sse([0.01, chunk({"content": "3"}, "stop")])

    with FakeServer(answer) as server:
        asyncio.run(main(server))


def test_a_server_whose_health_is_all_that_works_ends_the_outage_nowhere() -> None:
    async def main() -> None:
        mute = pool(outage_s=0.3)
        last, tried = TeacherError(""), 0
        while not last.fatal:
            with pytest.raises(TeacherError) as raised:
                await use(mute, fault=Broken("not a token", retry=True))
            last, tried = raised.value, tried + 1
        assert "no server has answered for 0.3 s: not a token" in last.message
        assert tried > FAULTS
        assert rows(mute)[0]["ejected"] > 1  # its health check took it back in between
        await mute.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_answer_ends_an_outage() -> None:
    async def main() -> None:
        one = pool(outage_s=30)
        await fail(one, Broken("torn", retry=True), FAULTS)
        assert one._down_since is not None
        await use(one)
        assert one._down_since is None
        await fail(one, Broken("torn", retry=True), FAULTS)
        assert one._down_since is not None
        await one.close()

    asyncio.run(asyncio.wait_for(main(), 60))
