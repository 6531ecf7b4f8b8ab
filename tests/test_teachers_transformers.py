"""The embedded engine on models of a few thousand weights: text, limits, errors, identity."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.errors import ModelError, RecipeError, TeacherError
from distill.protocols import BatchTeacher, Completion, Request, SamplingParams
from distill.teachers.transformers import TransformersTeacher
from tests import char_models

CHAT = [{"role": "user", "content": "1+2"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return char_models.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def teacher(folder: Path) -> TransformersTeacher:
    return TransformersTeacher(str(folder), batch_size=8)


def ask(prompt: Any = CHAT, *, key: str = "p/0/0", seed: int = 1, **params: Any) -> Request:
    prefix = params.pop("prefix_ids", None)
    params.setdefault("max_tokens", 30)
    return Request(
        key=key, prompt=prompt, params=SamplingParams(**params), seed=seed, prefix_ids=prefix
    )


def one(teacher: TransformersTeacher, request: Request) -> Completion:
    (found,) = teacher.complete_batch([request])
    assert isinstance(found, Completion), found
    return found


def scripted(teacher: TransformersTeacher, words: list[str]) -> TransformersTeacher:
    """The same engine with a decoder that says what it is told."""
    teacher.open()
    assert teacher._chat is not None
    tokenizer = teacher._chat.tokenizer
    said = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in words]

    class Parrot:
        eos = teacher._decoder.eos
        model = teacher._decoder.model

        def run(self, rows: list[Any], on_tokens: Any = None) -> None:
            for row, ids in zip(rows, said, strict=True):
                for token in ids:
                    if not row.push(token, self.eos):
                        break

    teacher._decoder = Parrot()
    return teacher


def test_a_completion_carries_all_that_was_said(teacher: TransformersTeacher) -> None:
    assert isinstance(teacher, BatchTeacher)
    found = one(teacher, ask())
    assert found.prompt == "<user>1+2<bot>"
    assert found.prompt_ids is not None
    assert found.token_ids is not None
    assert found.usage.prompt_tokens == len(found.prompt_ids) == 5
    assert found.usage.completion_tokens == len(found.token_ids) > 0
    assert found.served_model == "tiny"
    assert "<eos>" not in found.text
    assert teacher.complete_batch([]) == []


def test_equal_requests_give_equal_text_in_any_number_of_groups(folder: Path) -> None:
    requests = [ask([{"role": "user", "content": f"{i}+1"}], seed=i % 3) for i in range(10)]
    first = TransformersTeacher(str(folder), batch_size=4).complete_batch(requests)
    again = TransformersTeacher(str(folder), batch_size=4).complete_batch(requests)
    assert first == again
    assert len({item.text for item in first if isinstance(item, Completion)}) > 5


def test_more_requests_than_a_batch_are_decoded_by_length(folder: Path) -> None:
    engine = scripted(TransformersTeacher(str(folder), batch_size=2), ["a<eos>", "b<eos>"])
    widths: list[list[int]] = []
    run = engine._decoder.run
    engine._decoder.run = lambda rows, told: widths.append([len(r.ids) for r in rows]) or run(rows)
    lengths = [30, 3, 40, 2, 35, 1]
    long = ask([{"role": "user", "content": "1" * 200}], key="long/0/0")
    chats = [ask([{"role": "user", "content": "1" * n}]) for n in lengths]
    done = engine.complete_batch([*chats[:3], long, *chats[3:]])
    assert widths == [[3, 4], [5, 32], [37, 42]]
    assert isinstance(done.pop(3), TeacherError)
    prompts = [item.usage.prompt_tokens for item in done if isinstance(item, Completion)]
    assert prompts == [n + 2 for n in lengths]


def test_text_and_token_prompts(teacher: TransformersTeacher) -> None:
    chat = one(teacher, ask())
    assert chat.prompt_ids is not None
    # This tokenizer adds no BOS, so the rendered text is the same prompt.
    text = one(teacher, ask("<user>1+2<bot>"))
    ids = one(teacher, ask(list(chat.prompt_ids)))
    assert chat.text == text.text == ids.text
    assert (text.prompt, ids.prompt) == ("<user>1+2<bot>", None)


def test_a_prefix_is_gone_on_from(teacher: TransformersTeacher) -> None:
    whole = one(teacher, ask(temperature=0, max_tokens=12))
    assert whole.token_ids is not None
    rest = one(teacher, ask(temperature=0, max_tokens=8, prefix_ids=whole.token_ids[:4]))
    assert rest.token_ids == whole.token_ids
    assert rest.text == whole.text
    assert rest.usage.completion_tokens == len(whole.token_ids) - 4
    assert rest.usage.prompt_tokens == whole.usage.prompt_tokens


def test_one_prompt_beyond_the_context_fails_alone(teacher: TransformersTeacher) -> None:
    long = [{"role": "user", "content": "1" * 200}]
    near = [{"role": "user", "content": "1" * 90}]
    requests = [ask(), ask(long, key="long/0/0"), ask(near, max_tokens=50)]
    good, failed, near_end = teacher.complete_batch(requests)
    assert isinstance(good, Completion)
    assert isinstance(failed, TeacherError)
    assert not failed.retry
    assert not failed.fatal
    assert "long/0/0" in failed.message
    assert "96" in failed.message
    assert isinstance(near_end, Completion)
    assert near_end.usage.completion_tokens <= 4
    if near_end.finish_reason == "length":
        assert near_end.flags == ("context",)


def test_length_is_the_reason_at_max_tokens(folder: Path) -> None:
    engine = scripted(TransformersTeacher(str(folder)), ["12345678"])
    found = one(engine, ask(max_tokens=3))
    assert (found.text, found.finish_reason, found.flags) == ("123", "length", ())


@pytest.mark.parametrize("special_tags", [False, True])
def test_think_tags_survive_and_control_tokens_do_not(tmp_path: Path, special_tags: bool) -> None:
    folder = char_models.save(tmp_path / "m", special_tags=special_tags)
    engine = scripted(TransformersTeacher(str(folder)), ["<think>1+2=3</think>the sum: 3<eos>"])
    found = one(engine, ask(max_tokens=60))
    assert found.text == "<think>\n1+2=3\n</think>\n\nthe sum: 3"
    assert found.reasoning == "1+2=3"
    assert found.finish_reason == "stop"


def test_a_template_that_opens_the_thinking_is_seen(tmp_path: Path) -> None:
    folder = char_models.save(tmp_path / "m", template=char_models.OPENING)
    engine = scripted(
        TransformersTeacher(str(folder)), ["1+2=3</think>3<eos>", "still at it", "<eos>"]
    )
    done, cut, empty = engine.complete_batch([ask(), ask(max_tokens=11), ask()])
    assert isinstance(done, Completion)
    assert done.text == "<think>\n1+2=3\n</think>\n\n3"
    assert isinstance(cut, Completion)
    assert (cut.text, cut.reasoning) == ("<think>\nstill at it", "still at it")
    assert isinstance(empty, Completion)
    assert empty.text == "<think>\n"


def test_other_tags(tmp_path: Path) -> None:
    folder = char_models.save(tmp_path / "m")
    engine = TransformersTeacher(str(folder), tags={"open": "(", "close": ")"})
    found = one(scripted(engine, ["(so 3)3<eos>"]), ask())
    assert found.reasoning == "so 3"
    assert found.text == "(\nso 3\n)\n\n3"


def test_stop_strings_end_a_row_and_are_cut_off(folder: Path) -> None:
    words = ["abc: stop: here we go on and on", "sto"]
    engine = scripted(TransformersTeacher(str(folder)), words)
    first, second = engine.complete_batch(
        [ask(stop=("stop:", "never"), max_tokens=60), ask(stop=("xyz",), max_tokens=3)]
    )
    assert isinstance(first, Completion)
    assert isinstance(second, Completion)
    assert (first.text, first.finish_reason) == ("abc:", "stop")
    assert first.usage.completion_tokens == len("abc: stop:")
    assert (second.text, second.finish_reason) == ("sto", "length")


def test_a_stop_string_may_begin_in_the_prefix(folder: Path) -> None:
    engine = TransformersTeacher(str(folder))
    engine.open()
    assert engine._chat is not None
    prefix = engine._chat.tokenizer("abc st", add_special_tokens=False)["input_ids"]
    found = one(scripted(engine, ["op and more"]), ask(stop=("stop",), prefix_ids=prefix))
    assert (found.text, found.usage.completion_tokens) == ("abc", 2)


def test_a_base_model_needs_a_template_for_a_chat(tmp_path: Path) -> None:
    folder = char_models.save(tmp_path / "base", template=None)
    with pytest.raises(ModelError, match="base has no chat template") as error:
        TransformersTeacher(str(folder)).complete_batch([ask()])
    assert "chat_template" in error.value.hint
    plain = one(TransformersTeacher(str(folder)), ask("1+2="))
    assert plain.prompt == "1+2="
    path = tmp_path / "own.jinja"
    path.write_text(char_models.TEMPLATE, encoding="utf-8")
    from_file = one(TransformersTeacher(str(folder), chat_template=str(path)), ask())
    from_text = one(TransformersTeacher(str(folder), chat_template=char_models.TEMPLATE), ask())
    assert from_file == from_text
    with pytest.raises(ModelError, match=r"no chat template .*gone\.jinja"):
        TransformersTeacher(str(folder), chat_template=str(tmp_path / "gone.jinja"))


def test_a_template_that_refuses_fails_its_request_only(tmp_path: Path) -> None:
    strict = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}x"
    folder = char_models.save(tmp_path / "m", template=strict)
    engine = TransformersTeacher(str(folder))
    bad, good = engine.complete_batch([ask([*CHAT, *CHAT], key="two/0/0"), ask()])
    assert isinstance(bad, TeacherError)
    assert "one at a time" in bad.message
    assert isinstance(good, Completion)


def test_missing_models_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as error:
        TransformersTeacher("nobody/no-such-model", revision="v2")
    assert "hf download nobody/no-such-model --revision v2" in error.value.hint
    with pytest.raises(ModelError, match="no model folder"):
        TransformersTeacher(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no config"):
        TransformersTeacher(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="no model was given"):
        TransformersTeacher("")


def test_weights_as_pickle_are_refused(tmp_path: Path) -> None:
    import torch

    folder = char_models.save(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(char_models.model("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="m cannot be loaded"):
        TransformersTeacher(str(folder)).complete_batch([ask()])


def test_a_tokenizer_is_what_its_file_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers 5 gives folders of the Qwen2 family Qwen's splitting, whatever they hold."""
    folder = char_models.save(tmp_path / "m", "qwen2")
    engine = scripted(TransformersTeacher(str(folder)), ["the sum: 3<eos>"])
    found = one(engine, ask([{"role": "user", "content": "what is 1 + 2"}]))
    assert found.prompt_ids is not None
    assert len(found.prompt_ids) == len("what is 1 + 2") + 2
    assert found.text == "the sum: 3"
    assert "splits text otherwise than tokenizer.json" in caplog.text


def test_identity_is_of_content_not_of_place(tmp_path: Path) -> None:
    here = char_models.save(tmp_path / "a" / "m")
    there = char_models.save(tmp_path / "b" / "m")
    identity = TransformersTeacher(str(here)).identity
    assert identity.startswith("transformers:m@")
    assert "+template:" in identity
    assert TransformersTeacher(str(there)).identity == identity
    (there / "README.md").write_text("notes", encoding="utf-8")
    assert TransformersTeacher(str(there), batch_size=3).identity == identity
    other = TransformersTeacher(str(here), chat_template="{{ messages }}").identity
    assert other.split("+")[0] == identity.split("+")[0]
    assert other != identity
    char_models.model("llama", seed=5).save_pretrained(there)
    assert TransformersTeacher(str(there)).identity != identity


def test_identity_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from distill.teachers.transformers import TransformersTeacher as T;"
        "print(T(sys.argv[1]).identity, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    identity, torch, transformers = out.stdout.split()
    assert identity == TransformersTeacher(str(folder)).identity
    assert (torch, transformers) == ("False", "False")


def test_from_spec(folder: Path) -> None:
    spec = {"engine": "transformers", "model": str(folder), "options": {"batch_size": 5}}
    assert TransformersTeacher.from_spec(spec).capabilities.batch_size == 5
    with pytest.raises(RecipeError, match="'batch_sise'; did you mean 'batch_size'"):
        TransformersTeacher.from_spec({**spec, "options": {"batch_sise": 5}})
    with pytest.raises(RecipeError, match="quantization"):
        TransformersTeacher.from_spec({**spec, "quantization": "fp8"})
    with pytest.raises(RecipeError, match="batch_size"):
        TransformersTeacher.from_spec({**spec, "options": {"batch_size": 0}})


def test_closing_gives_the_model_back(folder: Path) -> None:
    engine = TransformersTeacher(str(folder))
    before = one(engine, ask())
    engine.close()
    assert engine._decoder is None
    assert one(engine, ask()) == before
