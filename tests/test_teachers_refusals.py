"""What the HTTP engine makes of refusals and broken answers: again, never mind, or stop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import TeacherError
from distill.protocols import Completion
from distill.teachers.openai import OpenAITeacher
from distill.teachers.refusals import retry_after, room_left
from distill.teachers.stream import Answer, Body
from distill.thinking import DEFAULT_TAGS
from tests.asking import answered, ask, complete, refused, teacher
from tests.fake_server import (
    CLOSE,
    RESET,
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


def test_a_port_that_takes_connections_and_never_answers_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distill.teachers.wire.CALL_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        engine = OpenAITeacher("m", base_urls=[url], timeout_s=0.1)
        with pytest.raises(TeacherError, match="connections and answers nothing") as raised:
            asyncio.run(engine.open())
        assert url in raised.value.message
        assert [row["up"] for row in engine.stats()["servers"]] == [False]


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
    new = "max_tokens=2000 cannot be greater than max_model_len=1024. Please request fewer"
    assert room_left(new, 2000) == 1024


def test_a_context_that_the_server_tells_is_asked_for_no_more_than_it_holds() -> None:
    class Told(FakeServer):
        def greet(self, asked: Asked) -> Reply | None:
            return as_json({"data": [{"id": "m", "max_model_len": 8}]})

    def full(asked: Asked) -> Reply:
        end = "length" if asked.body and asked.body["max_tokens"] > 2 else "stop"
        return sse([chunk({"content": "abc"}, end), chunk(usage={"prompt_tokens": 5} | three)])

    three = {"completion_tokens": 3}
    with Told(full) as server:
        over, within, ended = complete(
            teacher(server), ask(max_tokens=99), ask(max_tokens=8), ask(max_tokens=2)
        )
        limits = sorted(a.body["max_tokens"] for a in server.asked if a.body)
    assert limits == [2, 8, 8]
    assert isinstance(over, Completion)
    assert isinstance(within, Completion)
    assert isinstance(ended, Completion)
    assert (over.flags, within.flags, ended.flags) == (("context",), ("context",), ())


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
        sse([chunk({"content": "a"}), {"object": "error", "message": "engine died"}]),
        sse([chunk({"content": "a"}), b'data: {"choi'], done=False),
        sse([chunk({"content": "a"}), RESET]),
        sse([chunk({"content": "a"}), CLOSE]),
        Reply(200, [RESET]),
        Reply(200, [], "text/event-stream"),
        as_json({"choices": []}),
        as_json({"choices": None}),
        as_json({"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}),
        as_json({"choices": {"a": 1}}),
        as_json({"choices": [{"text": "a", "token_ids": ["x"], "finish_reason": "stop"}]}),
        as_json({"choices": [{"message": {"content": "a"}}], "usage": "none"}),
        Reply(200, [b'{"a": "\xff"}']),
        Reply(200, [b"[" * 100_000]),
        sse([chunk({"content": "a"}), b"data: \x00\xff\n\n"]),
        stream("half", end="abort"),
        stream("half", end="insufficient_system_resource"),
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
        "error of the older kind",
        "end inside an event",
        "reset",
        "closed",
        "reset before the first byte",
        "no body",
        "choices empty",
        "choices null",
        "a number for a text",
        "an object for a list",
        "words for token ids",
        "a word for the usage",
        "not UTF-8",
        "deep",
        "binary",
        "aborted",
        "gave up",
    ],
)
def test_broken_answers_are_tried_again(reply: Reply) -> None:
    found = refused(lambda _: reply)
    assert found.retry
    assert not found.fatal


def test_an_error_in_a_stream_that_refuses_the_request_is_not_tried_again() -> None:
    said = {"error": {"message": "maximum context length", "code": 400}}
    assert not refused(lambda _: sse([chunk({"content": "a"}), said])).retry


@pytest.mark.parametrize("kind", ["", "text/plain", "text/html", "application/octet-stream"])
def test_what_an_answer_is_says_its_first_byte_and_not_its_content_type(kind: str) -> None:
    streamed = stream("3", "sum")
    whole = as_json({"choices": [{"message": {"content": "3"}, "finish_reason": "stop"}]})
    for reply, text in ((streamed, "<think>\nsum\n</think>\n\n3"), (whole, "3")):
        assert answered(lambda _, r=reply: Reply(200, r.chunks, kind)).text == text


def test_a_stream_without_an_end_is_left_at_some_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.teachers.stream.UNCOUNTED", 1000 - 32768)
    many = b"".join(b'data: {"choices":[{"delta":{"content":"a "}}]}\n\n' for _ in range(1000))
    assert answered(lambda _: Reply(200, [many, b"data: [DONE]\n\n"], "x")).text
    found = refused(lambda _: Reply(200, [many] * 400, "text/event-stream"))
    assert "no end" in found.message
    assert not found.retry
    assert not found.fatal


def test_choices_that_nobody_asked_for_do_not_mix_in() -> None:
    def row(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text}, "finish_reason": finish}

    rows = [row(0, "a"), row(1, "X"), row(0, "b", "stop"), row(1, "Y", "length")]
    found = answered(lambda _: sse([{"choices": [r]} for r in rows]))
    assert (found.text, found.finish_reason) == ("ab", "stop")
    assert found.flags == ("extra_choices",)
    together = [
        {"index": i, "message": {"content": t}, "finish_reason": "stop"} for i, t in enumerate("ab")
    ]
    assert answered(lambda _: as_json({"choices": together})).text == "a"


@pytest.mark.parametrize(
    "counts",
    [(-3, 5), (3, -5), ("3", 5), (3, 5.5), (3, True), (3, 10**15), ([], {})],
    ids=str,
)
def test_absurd_usage_counts_for_nothing(counts: tuple[Any, Any]) -> None:
    reported = chunk(usage={"prompt_tokens": counts[0], "completion_tokens": counts[1]})
    found = answered(lambda _: sse([chunk({"content": "3"}, "stop"), reported]))
    assert found.flags == ("odd_usage",)
    assert found.usage.prompt_tokens in (0, 3)
    assert found.usage.completion_tokens in (0, 5)


def test_no_usage_is_nothing_odd_and_token_ids_are_counted() -> None:
    null = chunk(usage={"prompt_tokens": None, "completion_tokens": None})
    assert answered(lambda _: sse([chunk({"content": "3"}, "stop"), null])).flags == ()
    ids = {"choices": [{"index": 0, "delta": {"content": "3"}, "token_ids": [1, 2]}]}
    found = answered(lambda _: sse([ids, chunk({}, "stop")]))
    assert found.usage.completion_tokens == 2


def test_finish_reasons_never_seen_before_are_kept_and_flagged() -> None:
    found = answered(lambda _: stream("3", end="moon_phase"))
    assert (found.finish_reason, found.flags) == ("moon_phase", ("odd_finish_reason",))
    missing = answered(lambda _: sse([chunk({"content": "3"})]))
    assert (missing.finish_reason, missing.flags) == ("unknown", ("no_finish_reason",))
    for word in ("max_tokens", "model_length"):
        assert answered(lambda _, w=word: stream("3", end=w)).finish_reason == "length"


def test_surrogates_and_control_characters_arrive_as_they_are() -> None:
    odd = "a\x00b\x1b[31m\r\n\x7f\ufeff"
    assert answered(lambda _: stream(f"<{odd}>")).text == f"<{odd}>"
    pair = [chunk({"content": "\ud83d"}), chunk({"content": "\ude00"}, "stop")]
    assert answered(lambda _: sse(pair)).text == "\U0001f600"
    alone = answered(lambda _: sse([chunk({"content": "a\ud83d"}, "stop")])).text
    assert alone == "a\ud83d"  # the sampler writes U+FFFD and says so
    with FakeServer(lambda _: stream("3")) as server:
        (found,) = complete(teacher(server), ask([{"role": "user", "content": "\ud83d?"}]))
        assert server.asked[0].body
        assert server.asked[0].body["messages"][0]["content"] == "\ud83d?"
    assert isinstance(found, Completion)


@given(
    st.lists(st.binary(max_size=30), max_size=6),
    st.sampled_from(
        [b"", b'data: {"choices"', b"<html>", b'{"choices": [', b": ping\n\ndata: 1\n"]
    ),
)
def test_no_bytes_whatever_raise_anything_but_a_teacher_error(
    pieces: list[bytes], begin: bytes
) -> None:
    body, answer = Body(), Answer()
    with contextlib.suppress(TeacherError):
        for piece in [begin, *pieces]:
            answer.feed(body.feed(piece))
        answer.feed(body.end())
        answer.completion(DEFAULT_TAGS, prompt_opens=False)


@given(
    text=st.text(min_size=1, max_size=40).filter(lambda t: t.strip()),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    end=st.sampled_from([b"\n\n", b"\r\n\r\n"]),
)
def test_a_stream_is_the_same_wherever_the_network_cuts_it(
    text: str, cuts: list[int], end: bytes
) -> None:
    rows = [chunk({"content": c}) for c in text] + [chunk({}, "stop")]
    data = b": hi\n\n" + b"".join(b"data:" + json.dumps(r).encode() + end for r in rows)
    data += b"data: [DONE]"
    places = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    body, answer = Body(), Answer()
    for start, stop in itertools.pairwise(places):
        answer.feed(body.feed(data[start:stop]))
    answer.feed(body.end())
    assert answer.done
    assert answer.completion(DEFAULT_TAGS, prompt_opens=False).text == text.strip()


def test_after_the_first_answer_a_refusal_is_one_request_s_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replies = iter([stream("3"), error(403, "flagged by moderation"), error(404), stream("3")])

    async def main(engine: OpenAITeacher) -> list[Any]:
        found = []
        for _ in range(4):
            found += await asyncio.gather(engine.complete(ask()), return_exceptions=True)
        await engine.close()
        return found

    with FakeServer(lambda _: next(replies)) as server:
        first, flagged, gone, last = asyncio.run(main(teacher(server)))
    assert isinstance(first, Completion)
    assert (flagged.retry, flagged.fatal) == (False, False)
    assert (gone.retry, gone.fatal) == (True, False)
    assert isinstance(last, Completion)


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
    assert retry_after(httpx.Headers({"retry-after": "inf"})) is None
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
