"""What the HTTP engine makes of refusals and broken answers: again, never mind, or stop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from distill.errors import TeacherError
from distill.protocols import Completion
from distill.teachers.openai import OpenAITeacher
from distill.teachers.refusals import retry_after, room_left
from tests.asking import ask, complete, refused, teacher
from tests.fake_server import (
    Asked,
    FakeServer,
    Reply,
    as_json,
    chunk,
    error,
    sse,
    stream,
)


def test_a_missing_key_is_named_and_a_wrong_one_never_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = refused(lambda _: error(401, "no key given"))
    assert found.fatal
    assert "NO_SUCH_KEY is not set" in found.message
    assert "export NO_SUCH_KEY" in found.hint
    monkeypatch.setenv("MY_KEY", "sk-secret")
    for status in (401, 403):
        found = refused(
            lambda _, status=status: error(status, "bad key sk-secret"), api_key_env="MY_KEY"
        )
        assert found.fatal
        assert "MY_KEY" in found.message
        assert "sk-secret" not in str(found)
    found = refused(lambda _: error(400, "what is sk-secret?"), api_key_env="MY_KEY")
    assert "sk-secret" not in str(found)


def test_a_key_is_refused_before_anything_is_sampled() -> None:
    with FakeServer(lambda _: stream("3")) as server:
        server.greet = lambda _: error(401)  # type: ignore[method-assign]
        with pytest.raises(TeacherError) as raised:
            complete(teacher(server), ask())
        assert raised.value.fatal
        assert server.asked == []


def test_an_unknown_model_ends_the_run_with_the_ones_there_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FakeServer(lambda _: error(404, "no model m"), models=["r1", "v3"]) as server:
        engine = teacher(server)
        (found,) = complete(engine, ask())
    assert isinstance(found, TeacherError)
    assert found.fatal
    assert "r1, v3" in found.hint
    assert engine.served_models == ("r1", "v3")
    assert "does not list 'm'" in caplog.text


def test_no_list_of_models_is_no_obstacle() -> None:
    with FakeServer(lambda _: stream("3"), models=None) as server:
        (found,) = complete(teacher(server), ask())
    assert isinstance(found, Completion)
    with FakeServer(lambda _: error(404), models=None) as server:
        (lost,) = complete(teacher(server), ask())
    assert isinstance(lost, TeacherError)
    assert "usually ends in /v1" in lost.hint


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_what_passes_is_tried_again(status: int) -> None:
    found = refused(lambda _: error(status, "busy", retry_after="3"))
    assert (found.retry, found.retry_after, found.fatal) == (True, 3.0, False)
    assert refused(lambda _: Reply(status, [b"<html>"], "text/html")).retry_after is None


def test_an_empty_purse_ends_the_run() -> None:
    assert refused(lambda _: error(402, "Insufficient Balance")).fatal
    assert refused(lambda _: error(429, "You exceeded your current quota")).fatal


def test_a_prompt_beyond_the_context_fails_alone() -> None:
    said = (
        "This model's maximum context length is 10 tokens. However, your prompt contains 12 input"
    )

    def answer(asked: Asked) -> Reply:
        assert asked.body
        long = len(asked.body["messages"][0]["content"]) > 10
        return error(400, said) if long else stream("3")

    with FakeServer(answer) as server:
        good, long = complete(teacher(server), ask(), ask([{"role": "user", "content": "x" * 50}]))
        assert isinstance(good, Completion)
        assert isinstance(long, TeacherError)
        assert (long.retry, long.fatal) == (False, False)
        assert "p/0/0" in long.message
        assert len(server.asked) == 2


def test_a_limit_that_the_context_cannot_hold_is_lowered_once() -> None:
    def answer(asked: Asked) -> Reply:
        assert asked.body
        if asked.body["max_tokens"] + 100 > 1024:
            return error(
                400,
                f"'max_tokens' is too large: {asked.body['max_tokens']}. This model's maximum "
                "context length is 1024 tokens and your request has 100 input tokens",
            )
        return stream("3", end="length")

    with FakeServer(answer) as server:
        (found,) = complete(teacher(server), ask(max_tokens=2000))
        assert [a.body["max_tokens"] for a in server.asked if a.body] == [2000, 924]
    assert isinstance(found, Completion)
    assert "context" in found.flags
    old = (
        "This model's maximum context length is 1024 tokens. However, you requested 1100 tokens "
        "(100 in the messages, 1000 in the completion)."
    )
    assert room_left(old, 1000) == 924
    assert room_left(old, 900) is None
    assert room_left("something else", 900) is None


def test_requests_that_no_server_takes_end_the_run_only_if_nothing_ever_worked() -> None:
    with FakeServer(lambda _: error(400, "unknown field top_k")) as server:
        found = complete(teacher(server), *[ask() for _ in range(10)])
    kinds = [f.fatal for f in found if isinstance(f, TeacherError)]
    assert kinds.count(True) == 3
    assert kinds.count(False) == 7

    async def one_good_then_bad(engine: OpenAITeacher) -> list[Any]:
        await engine.complete(ask())
        good = [ask() for _ in range(10)]
        return await asyncio.gather(*map(engine.complete, good), return_exceptions=True)

    replies = iter([stream("3")])
    with FakeServer(lambda _: next(replies, error(400, "no"))) as server:
        later = asyncio.run(one_good_then_bad(teacher(server)))
    assert not any(f.fatal for f in later)


@pytest.mark.parametrize(
    "reply",
    [
        stream(""),
        stream(" \n"),
        Reply(200, [b"<html>captive portal</html>"], "text/html"),
        Reply(200, [b"{torn"], "application/json"),
        Reply(200, [b"[]"], "application/json"),
        as_json({}),
        sse([chunk({"content": "half of"})], done=False),
        sse([chunk({"content": "a"}), b"data: {torn\n\n"]),
        sse([chunk({"content": "a"}), {"error": {"message": "engine died"}}]),
        Reply(200, [b'data: {"choi'], "text/event-stream", {"content_length": "500"}),
    ],
    ids=[
        "empty",
        "blank",
        "html",
        "torn",
        "list",
        "no choices",
        "end",
        "bad chunk",
        "error",
        "cut",
    ],
)
def test_broken_answers_are_tried_again(reply: Reply) -> None:
    found = refused(lambda _: reply)
    assert found.retry
    assert not found.fatal


def test_a_filtered_answer_is_not_tried_again() -> None:
    assert not refused(lambda _: stream("", end="content_filter")).retry


def test_nobody_there() -> None:
    with FakeServer(lambda _: stream("3")) as server:
        gone = server.url
    engine = OpenAITeacher("m", base_urls=[gone])
    with pytest.raises(TeacherError) as raised:
        asyncio.run(engine.open())
    assert raised.value.fatal
    assert gone in raised.value.message
    assert "vllm serve" in raised.value.hint
    with pytest.raises(TeacherError):
        asyncio.run(engine.complete(ask()))


def test_a_server_that_dies_later_is_tried_again() -> None:
    async def main(server: FakeServer) -> BaseException:
        engine = teacher(server)
        await engine.open()
        server.__exit__()
        (found,) = await asyncio.gather(engine.complete(ask()), return_exceptions=True)
        await engine.close()
        assert isinstance(found, BaseException)
        return found

    server = FakeServer(lambda _: stream("3"))
    server.__enter__()
    found = asyncio.run(main(server))
    assert isinstance(found, TeacherError)
    assert found.retry


def test_retry_after_is_read_in_seconds_and_as_a_date() -> None:
    import httpx

    assert retry_after(httpx.Headers({"retry-after": "1.5"})) == 1.5
    assert retry_after(httpx.Headers({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"})) == 0.0
    assert retry_after(httpx.Headers({"retry-after": "soon"})) is None
    assert retry_after(httpx.Headers({})) is None


def test_a_hub_that_cannot_be_reached_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    from distill.errors import ModelError
    from distill.teachers import hub

    class ConnectError(Exception):
        """As the hub client's transport library raises it, whichever that is."""

    class TransportError(ConnectError):
        pass

    class Unreachable:
        def model_info(self, *args: object, **kwargs: object) -> None:
            raise TransportError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        hub.locate("nobody/nothing", None)
    assert "hf download nobody/nothing" in str(caught.value)
