"""Continuations over HTTP, at a server that knows tokens (here: one a character) or only text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distill.errors import TeacherError
from distill.protocols import Capabilities, Completion, Request
from tests.asking import CHAT, ask, complete, teacher
from tests.fake_server import Asked, FakeServer, Reply, as_json, error, sse, usage

PROMPT = "<user>1+2?<bot>"


class Tokens:
    """A vLLM of one token a character. `says` is the whole output; its prompt may open thinking."""

    def __init__(self, says: str, *, opened: str = "", tokenizes: bool = True) -> None:
        self.says, self.opened, self.tokenizes = says, opened, tokenizes

    def __call__(self, asked: Asked) -> Reply:
        body = asked.body or {}
        if asked.path in ("/tokenize", "/detokenize"):
            if not self.tokenizes:
                return error(404)
            return as_json(self.tokens(asked.path, body))
        prompt = PROMPT + self.opened
        if asked.path == "/v1/chat/completions":
            return self.stream(prompt, self.says, body["max_tokens"])
        text = "".join(map(chr, body["prompt"]))
        assert text.startswith(prompt)
        done = text.removeprefix(prompt)
        assert self.says.startswith(done)
        return self.stream(text, self.says[len(done) :], body["max_tokens"])

    def tokens(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/detokenize":
            return {"prompt": "".join(map(chr, body["tokens"]))}
        text = body.get("prompt", PROMPT + self.opened)
        return {"tokens": list(map(ord, text)), "count": len(text)}

    def stream(self, prompt: str, rest: str, most: int) -> Reply:
        """As vLLM streams: prompt ids in the first chunk, of the chat or of its choice."""
        said = rest[:most]
        rows: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": c}, "text": c, "token_ids": [ord(c)]}]}
            for c in said
        ]
        rows[0]["prompt_token_ids"] = list(map(ord, prompt))
        rows[-1]["choices"][0]["finish_reason"] = "length" if len(said) < len(rest) else "stop"
        return sse([*rows, {"choices": [], "usage": usage(len(prompt), len(said))}])


def continued(before: Completion, most: int, *, ids: bool = True, **extra: Any) -> Request:
    request = replace(ask(max_tokens=most), prefix_text=before.text, **extra)
    if not ids:
        return request
    return replace(request, prefix_ids=before.token_ids, prompt_ids=before.prompt_ids)


def one(server: FakeServer, request: Request, **kwargs: Any) -> Completion:
    (found,) = complete(teacher(server, return_token_ids=True, **kwargs), request)
    if isinstance(found, BaseException):
        raise found
    return found


R1 = "sum of \n\n 1 and 2</think>\n\n3"


@pytest.mark.parametrize("opened", ["", "<think>\n"])
@pytest.mark.parametrize("cut", [1, 8, 9, 12, 22, 27, 31, 34])
def test_by_tokens_it_goes_on_exactly_where_it_stopped(cut: int, opened: str) -> None:
    says = R1 if opened else "<think>\n" + R1
    with FakeServer(Tokens(says, opened=opened)) as server:
        whole = one(server, ask(), prompt_opens=bool(opened))
        cut = min(cut, len(says) - 1)
        before = one(server, ask(max_tokens=cut), prompt_opens=bool(opened))
        assert before.finish_reason == "length"
        after = one(server, continued(before, 1000), prompt_opens=bool(opened))
        sent = server.asked[-1].body or {}
    assert (after.text, after.reasoning) == (whole.text, whole.reasoning)
    assert after.token_ids == tuple(map(ord, says))
    assert after.prompt_ids == whole.prompt_ids == before.prompt_ids
    assert after.usage.completion_tokens == len(says) - cut
    assert "prefilled" not in after.flags
    assert "messages" not in sent
    assert sent["skip_special_tokens"] is False


def test_a_character_that_was_cut_in_two_is_whole_again() -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path == "/detokenize":
            return as_json({"prompt": "ab\ufffd"})
        choice = {"index": 0, "text": "数c", "token_ids": [7, 8], "finish_reason": "stop"}
        return sse([{"choices": [choice]}])

    with FakeServer(answer) as server:
        before = Completion(text="ab", token_ids=(1, 2, 3), prompt_ids=(9,))
        assert one(server, continued(before, 10)).text == "ab数c"
        assert (server.asked[-1].body or {})["prompt"] == [9, 1, 2, 3]


def test_without_detokenize_the_known_text_is_used_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FakeServer(Tokens("<think>\na b</think>c", tokenizes=False)) as server:
        before = one(server, ask(max_tokens=9))
        assert one(server, continued(before, 99)).text == "<think>\na b\n</think>\n\nc"
        unknown = replace(continued(before, 99), prefix_text=None)
        with pytest.raises(TeacherError, match="no /detokenize"):
            one(server, unknown)
    assert "white space where traces were cut may be lost" in caplog.text


@pytest.mark.parametrize("opened", ["", "<think>\n", "<think>"])
@pytest.mark.parametrize("cut", [3, 6, 17])
def test_by_text_a_server_that_tokenizes_sees_no_half_message(cut: int, opened: str) -> None:
    begin = {"": "<think>\n", "<think>\n": "", "<think>": "\n"}[opened]
    says, cut = begin + R1, len(begin) + cut
    with FakeServer(Tokens(says, opened=opened)) as server:
        whole = one(server, ask(), prompt_opens=bool(opened))
        before = one(server, ask(max_tokens=cut), prompt_opens=bool(opened))
        after = one(
            server,
            continued(before, 1000, ids=False),
            extra_body={"chat_template_kwargs": {"a": 1}},
        )
        rendered = [a.body for a in server.asked if a.path == "/tokenize" and a.body]
    assert after.text == whole.text
    assert after.flags == ("prefilled",)
    assert rendered[0]["chat_template_kwargs"] == {"a": 1}


def test_by_text_any_other_server_is_handed_a_message_to_go_on_with() -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path.endswith("tokenize"):
            return error(404)
        # A parser that has seen no tag calls all of it reasoning until the closing one.
        rows = [{"reasoning": " 2 is"}, {"content": "3"}]
        deltas = [{"choices": [{"index": 0, "delta": row}]} for row in rows]
        deltas[-1]["choices"][0]["finish_reason"] = "stop"
        return sse(deltas)

    engine: dict[str, Any] = {"capabilities": {"prefill": True}}
    with FakeServer(answer) as server:
        assert teacher(server, **engine).capabilities == Capabilities(prefill=True)
        before = Completion(text="<think>\n1 and")
        (after,) = complete(teacher(server, **engine), continued(before, 50, ids=False))
        assert isinstance(after, Completion)
        assert after.text == "<think>\n1 and 2 is\n</think>\n\n3"
        assert after.flags == ("prefilled",)
        body = server.asked[-1].body or {}
        assert body["messages"] == [*CHAT, {"role": "assistant", "content": "<think>\n1 and"}]
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
        closed = Completion(text="<think>\n1\n</think>\n\nis")
        (refused,) = complete(teacher(server, **engine), continued(closed, 50, ids=False))
    assert isinstance(refused, TeacherError)
    assert not refused.retry
    assert "chat templates drop it" in refused.message


def test_tokens_without_their_prompt_are_nothing_to_go_on_from() -> None:
    with FakeServer(Tokens("abc")) as server:
        request = replace(ask(), prefix_ids=[1])
        with pytest.raises(TeacherError, match="the prompt's tokens too"):
            one(server, request)


def test_a_server_without_ids_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer(lambda _: sse([{"choices": [{"delta": {"content": "3"}}]}])) as server:
        one(server, ask())
    assert "returns no token ids" in caplog.text


def test_a_detokenize_of_another_kind_loses_no_text(caplog: pytest.LogCaptureFixture) -> None:
    class Other(Tokens):
        def tokens(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            found = super().tokens(path, body)
            return {"text": found["prompt"]} if path == "/detokenize" else found

    with FakeServer(Other("<think>\na b</think>c")) as server:
        before = one(server, ask(max_tokens=9))
        request = continued(before, 99)
        found = complete(teacher(server, return_token_ids=True), request, request, request)
    assert [f.text for f in found] == ["<think>\na b\n</think>\n\nc"] * 3  # type: ignore[union-attr]
    assert caplog.text.count("white space where traces were cut may be lost") == 1
