"""The HTTP engine against a real small server: what it sends, and what it makes of each answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import RecipeError
from distill.protocols import Completion, Teacher
from distill.teachers.openai import OpenAITeacher
from distill.teachers.stream import whole
from distill.thinking import DEFAULT_TAGS
from tests.asking import CHAT, answered, ask, complete, refused, teacher
from tests.fake_server import (
    Answerer,
    Asked,
    FakeServer,
    Reply,
    as_json,
    chunk,
    sse,
    stream,
    usage,
)

R1 = "<think>\nsum\n</think>\n\n3"


@pytest.mark.parametrize(
    "reply",
    [
        stream("3", "sum"),
        stream("3", "sum", name="reasoning"),
        stream("<think>sum</think>3"),
        stream("sum</think>3"),
        as_json(
            {
                "model": "served",
                "system_fingerprint": "fp1",
                "choices": [
                    {
                        "message": {"content": "3", "reasoning_content": "sum"},
                        "finish_reason": "stop",
                    }
                ],
                "usage": usage(5, 9),
            }
        ),
    ],
    ids=["reasoning_content", "reasoning", "inline", "opened by the prompt", "not streamed"],
)
def test_thinking_comes_back_the_same_from_every_kind_of_server(reply: Reply) -> None:
    found = answered(lambda _: reply)
    assert (found.text, found.reasoning, found.finish_reason) == (R1, "sum", "stop")
    assert found.served_model == "served"
    assert (found.fingerprint, found.flags) == ("fp1", ())
    assert found.usage.prompt_tokens == 5
    assert found.usage.completion_tokens > 0


def test_a_chain_that_was_cut_stays_open() -> None:
    in_field = answered(lambda _: stream("", "still at it", end="length"))
    inline = answered(lambda _: stream("<think>still at it", end="length"))
    opened = answered(lambda _: stream("still at it", end="length"), prompt_opens=True)
    for found in (in_field, inline, opened):
        assert (found.text, found.finish_reason) == ("<think>\nstill at it", "length")
        assert found.reasoning == "still at it"
    plain = answered(lambda _: stream("still at it", end="length"))
    assert (plain.text, plain.reasoning) == ("still at it", None)


@given(
    said=st.text("ab<>/think \n", max_size=30),
    thought=st.text("ab \n", max_size=10),
    opens=st.booleans(),
)
def test_no_text_is_lost_whatever_a_server_returns(said: str, thought: str, opens: bool) -> None:
    text, reasoning = whole(said, thought, DEFAULT_TAGS, prompt_opens=opens)
    letters = sorted(c for c in said + thought if c in "ab")
    assert sorted(c for c in text if c in "ab") == letters
    assert reasoning is None or DEFAULT_TAGS.open in text


def test_what_is_sent_for_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with FakeServer(lambda _: stream("3")) as server:
        request = ask(temperature=0.7, top_p=0.9, top_k=20, max_tokens=99, stop=("END",))
        engine = teacher(server, api_key_env="MY_KEY", extra_body={"min_p": 0.1})
        assert isinstance(engine, Teacher)
        complete(engine, request)
        (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["Authorization"] == "Bearer sk-secret"
    assert asked.body == {
        "model": "m",
        "messages": CHAT,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 99,
        "stop": ["END"],
        "seed": 7,
        "min_p": 0.1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_vllm_server_is_asked_for_chunks_of_several_tokens_where_no_parser_reads_them() -> None:
    class VLLM(FakeServer):
        def greet(self, asked: Asked) -> Reply | None:
            return as_json({"data": [{"id": "m", "owned_by": "vllm"}]})

    def sent(server: FakeServer, **kwargs: Any) -> list[int | None]:
        server.asked.clear()
        complete(teacher(server, **kwargs), ask(), ask("1+2="), ask([1, 2]))
        bodies = sorted((a.body or {} for a in server.asked), key=lambda body: "messages" in body)
        return [body.get("stream_interval") for body in bodies]

    with VLLM(lambda _: stream("3")) as server:
        assert sent(server) == [16, 16, None]
        assert sent(server, stream_interval=4) == [4, 4, 4]
        assert sent(server, extra_body={"stream_interval": 2}) == [2, 2, 2]
    with FakeServer(lambda _: stream("3")) as other:
        assert sent(other) == [None, None, None]


def test_what_a_server_does_not_honour_is_not_sent() -> None:
    with FakeServer(lambda _: stream("3")) as server:
        engine = teacher(
            server,
            capabilities={"seed": False, "sampling": False},
            extra_body={"stream_options": None},
            served_name="alias",
            max_tokens_field="max_completion_tokens",
        )
        complete(engine, ask(top_k=5, max_tokens=9))
        body = server.asked[0].body
        assert "Authorization" not in server.asked[0].headers
    assert not engine.capabilities.seed
    assert body == {
        "model": "alias",
        "messages": CHAT,
        "max_completion_tokens": 9,
        "stream": True,
    }
    with pytest.raises(RecipeError, match="unknown capability"):
        OpenAITeacher("m", base_urls=["http://x"], capabilities={"sed": False})


def test_text_and_token_prompts_go_to_completions() -> None:
    def answer(asked: Asked) -> Reply:
        assert asked.path == "/v1/completions"
        choice = {"index": 0, "text": " 3", "finish_reason": "stop", "token_ids": [4]}
        return sse([{"choices": [{**choice, "prompt_token_ids": [1, 2]}], "usage": usage(3, 1)}])

    with FakeServer(answer) as server:
        engine = teacher(server, return_token_ids=True)
        assert engine.capabilities.token_ids
        assert engine.capabilities.prefix
        text, ids = complete(engine, ask("1+2="), ask([1, 2]))
        assert isinstance(text, Completion)
        assert isinstance(ids, Completion)
        assert (text.text, text.token_ids, text.prompt_ids) == ("3", (4,), (1, 2))
        prompts = [a.body["prompt"] for a in server.asked if a.body]
    assert sorted(prompts, key=str) == ["1+2=", [1, 2]]


def test_tokens_are_reported_while_they_come_and_add_up() -> None:
    told: list[int] = []
    payloads = [chunk({"content": "ab"}), chunk({"content": "c"}, "stop"), chunk(usage=usage(1, 7))]
    with FakeServer(lambda _: sse(payloads)) as server:
        complete(teacher(server), ask(), on_tokens=told.append)
    assert sum(told) == 7
    assert len(told) >= 2


def test_odd_line_ends_inside_a_text_do_not_cut_it() -> None:
    odd = "a\u2028b\x85c\u2029d\x1ce\u221af"
    assert answered(lambda _: sse([chunk({"content": odd}, "stop")])).text == odd
    last = b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}'
    assert answered(lambda _: sse([0.0, last[:20], 0.05, last[20:]], done=False)).text == "x"


def test_an_unknown_finish_reason_is_kept() -> None:
    assert answered(lambda _: stream("3", end="tool_calls")).finish_reason == "tool_calls"
    assert answered(lambda _: sse([chunk({"content": "3"})])).finish_reason == "unknown"


@pytest.mark.slow
def test_silence_times_out_but_a_slow_stream_does_not() -> None:
    pieces = [chunk({"content": "ab"}), chunk({"content": "c"}, "stop")]
    begin = time.monotonic()
    slow = answered(lambda _: sse(pieces, pause=0.2), timeout_s=0.35, silence_s=0.35)
    assert slow.text == "abc"
    assert time.monotonic() - begin >= 0.4
    found = refused(lambda _: sse([pieces[0], 0.8, pieces[1]]), silence_s=0.3)
    assert found.retry
    assert "silent for 0.3 s" in found.message
    assert "sampling.silence_s" in found.hint
    late = refused(lambda _: sse([0.8, *pieces]), timeout_s=0.3, silence_s=9)
    assert late.retry
    assert "no token for 0.3 s" in late.message
    assert "sampling.timeout_s" in late.hint


@pytest.mark.slow
def test_keep_alives_buy_a_first_token_time_but_not_for_ever() -> None:
    alive: list[Any] = [b": processing\n\n", 0.1]
    patient = answered(lambda _: sse([*alive * 6, chunk({"content": "3"}, "stop")]), timeout_s=0.3)
    assert patient.text == "3"
    found = refused(lambda _: sse(alive * 60), timeout_s=0.2)
    assert found.retry
    assert "no token" in found.message
    # After the first token a proxy's word for it counts no more.
    begun = refused(lambda _: sse([chunk({"content": "3"}), *alive * 60]), silence_s=0.3)
    assert "silent for" in begun.message


def test_several_servers_share_and_a_dead_one_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer: Answerer = lambda _: sse([chunk({"content": "3"}, "stop")], pause=0.1)  # noqa: E731
    with FakeServer(answer) as one, FakeServer(answer) as two:
        with FakeServer(answer) as dead:
            gone = dead.url
        engine = teacher(one, base_urls=[one.url, gone, two.url + "/"])
        found = complete(engine, *[ask() for _ in range(20)])
        assert all(isinstance(f, Completion) for f in found), found
        assert abs(len(one.asked) - len(two.asked)) <= 2
    assert "no server at" in caplog.text


@pytest.mark.slow
def test_more_than_a_hundred_requests_at_once() -> None:
    with FakeServer(lambda _: sse([0.5, chunk({"content": "3"}, "stop")])) as server:
        found = complete(teacher(server, timeout_s=30), *[ask() for _ in range(150)])
        assert server.most > 100
    assert all(isinstance(f, Completion) for f in found)


def test_one_engine_may_be_used_from_one_loop_after_another() -> None:
    with FakeServer(lambda _: stream("3")) as server:
        engine = teacher(server)
        for _ in range(2):
            assert asyncio.run(engine.complete(ask())).text == "3"


def test_from_spec_and_identity() -> None:
    spec = {
        "engine": "openai",
        "model": "DeepSeek-R1",
        "revision": "2025-01",
        "base_urls": ["http://localhost:8000/v1/chat/completions"],
        "quantization": "fp8",
        "timeout_s": 60,
    }
    engine = OpenAITeacher.from_spec(spec)
    assert engine.identity == "openai:deepseek-ai/DeepSeek-R1@2025-01+fp8"
    assert engine._urls[0] == "http://localhost:8000/v1"
    elsewhere = OpenAITeacher.from_spec({**spec, "base_urls": ["http://other/v1"]})
    assert elsewhere.identity == engine.identity
    options = {"extra_body": {"reasoning_effort": "high"}}
    assert OpenAITeacher.from_spec({**spec, "options": options}).identity != engine.identity
    official = OpenAITeacher.from_spec({"model": "deepseek-reasoner"})
    assert not official.capabilities.seed
    assert not official.capabilities.sampling
    assert official._urls[0] == "https://api.deepseek.com"
    with pytest.raises(RecipeError, match="no server was given"):
        OpenAITeacher.from_spec({"model": "DeepSeek-R1"})
    with pytest.raises(RecipeError, match="is no URL"):
        OpenAITeacher.from_spec({**spec, "base_urls": ["localhost:8000"]})
    with pytest.raises(RecipeError, match="'extra_bdy'; did you mean 'extra_body'"):
        OpenAITeacher.from_spec({**spec, "options": {"extra_bdy": {}}})
    with pytest.raises(RecipeError, match="no model was given"):
        OpenAITeacher("", base_urls=["http://x"])
