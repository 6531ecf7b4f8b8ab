"""What is known about a base: template, special tokens, architecture, licence. No torch here."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distill.errors import ModelError
from distill.thinking import DEFAULT_TAGS

HERE = Path(__file__).parent
TEMPLATES = HERE / "templates"


@dataclass(frozen=True, slots=True)
class Arch:
    """Sizes of a decoder with grouped-query attention and a gated MLP (Llama, Qwen, Mistral).

    `norms` are the norms of a layer that are as wide as its input (Gemma has four)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    head_dim: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2

    @property
    def params(self) -> int:
        """Number of weights, the embedding counted once where the head shares it."""
        h, dim = self.hidden, self.head_dim or self.hidden // self.heads
        q, kv = self.heads * dim, self.kv_heads * dim
        attention = h * q + 2 * h * kv + q * h + (q + 2 * kv if self.qkv_bias else 0)
        norms = self.norms * h + (2 * dim if self.qk_norm else 0)
        layer = attention + 3 * h * self.intermediate + norms
        return self.vocab * h * (1 if self.tied else 2) + self.layers * layer + h


@dataclass(frozen=True, slots=True)
class Entry:
    """One base. `path` is what `from_pretrained` gets; `eos` and `pad` are empty where the
    tokenizer's own are right; `untrained` are tokens of the template the base never saw.
    `copy_of` is the base of the catalog that a model outside it has the config of."""

    base: str
    path: str
    template: str
    family: str = ""
    eos: str = ""
    pad: str = ""
    licence: str = ""
    arch: Arch | None = None
    positions: int | None = None
    rope_theta: float | None = None
    untrained: tuple[str, ...] = ()
    adds_bos: bool = False
    bos: str = ""
    known: bool = field(default=False)
    copy_of: str = ""


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((HERE / "catalog.yaml").read_text(encoding="utf-8"))
    return data


def bases() -> tuple[str, ...]:
    """The bases the catalog knows by name."""
    return tuple(_data()["bases"])


def find(base: str, revision: str | None = None) -> Entry:
    """What is known about `base`: a name of the catalog, a local folder or a hub id.

    A base outside the catalog is looked up by the `model_type` of its config.json and the
    tokens of its tokenizer; what fits no family gets the template `plain`. Raises ModelError
    where there is no such model.
    """
    known = _data()["bases"].get(base)
    if known is None:
        return _from_files(base, _folder(base, revision))
    if "path" in known:
        folder = HERE / known["path"]
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the base '{base}' is not at {folder}", "reinstall distill: its data is incomplete"
            )
        return _from_files(base, folder, known)
    family = _data()["families"][known["family"]]
    return Entry(
        base=base,
        path=base,
        template=family["template"],
        family=known["family"],
        eos=family["eos"],
        pad=family["pad"],
        licence=known["licence"],
        arch=Arch(**known["arch"], **_kinds(family)),
        positions=known["positions"],
        rope_theta=known["rope_theta"],
        untrained=tuple(known.get("untrained", ())),
        known=True,
    )


def chat_template(base: str, template: str = "", revision: str | None = None) -> str:
    """The Jinja text with which `base` and its student are prompted and trained.

    `template` is a name of the catalog or a path to a .jinja file; empty: the catalog's for
    this base. Raises ModelError for an unknown one.
    """
    entry = find(base, revision)
    name = template or entry.template
    path = Path(name).expanduser() if name.endswith(".jinja") else TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        known = list(_data()["templates"])
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        meant = f"did you mean '{near[0]}'? " if near and not name.endswith(".jinja") else ""
        raise ModelError(
            f"no template '{name}' for the student",
            f"{meant}known: {', '.join(known)}; or a path to a .jinja file",
        )
    text = path.read_text(encoding="utf-8")
    _parse(text, name)
    # A tokenizer that puts BOS before every text would also do so in front of this prompt.
    if entry.adds_bos and "bos_token" not in text and (not entry.bos or entry.bos not in text):
        text = "{{- bos_token -}}\n" + text
    return text


def _parse(template_text: str, name: str) -> None:
    """Raise ModelError where a template cannot be read."""
    from jinja2 import TemplateSyntaxError

    try:
        _environment().parse(template_text)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"the template '{name}' is not valid Jinja: {error.message} (line {error.lineno})",
            "transformers and vLLM could not read it either",
        ) from None


def needed_tokens(template: str) -> tuple[str, ...]:
    """Tokens that a template of the catalog needs in the vocabulary as single tokens."""
    return tuple(_data()["templates"].get(template, {}).get("needs", ()))


def shape_of(template_text: str) -> tuple[str, str]:
    """How a template begins an answer: (`prefill`, `lead`).

    `prefill` is what the generation prompt already says of the answer (`<think>\\n` or nothing),
    `lead` the white space that the template puts between the prompt and an answer (the blank
    of "Assistant: yes"), which the student therefore has to say itself.
    """
    user = {"role": "user", "content": "x"}
    prompt = _rendered(template_text, [user], True)
    head, tag, tail = prompt.rpartition(DEFAULT_TAGS.open)
    prefill = tag + tail if tag and not tail.strip() else ""
    if prefill:
        prompt = head
    said = _rendered(template_text, [user, {"role": "assistant", "content": "y"}], False)
    lead, found, _ = said.removeprefix(prompt).partition("y")
    return prefill, lead if found and said.startswith(prompt) and not lead.strip() else ""


def _rendered(template_text: str, messages: list[dict[str, str]], prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return (
            _environment()
            .from_string(template_text)
            .render(messages=messages, add_generation_prompt=prompt, bos_token="", eos_token="")
        )
    except TemplateError:
        return ""  # the pre-flight renders the same chat, and says so


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # The settings with which transformers and vLLM render chat templates.
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    made.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    return made


def _folder(base: str, revision: str | None) -> Path:
    """The folder with the config and tokenizer of a model that the catalog does not name."""
    folder = Path(base).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise ModelError(
            f"no model at '{base}'",
            f"give a folder with a config.json, a hub id, or one of: {', '.join(bases())}",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(base, revision=revision, allow_patterns=["*.json", "*.jinja"])
        )
    except Exception as error:
        raise missing(base, error) from None


def missing(base: str, error: Exception) -> ModelError:
    """The error for a hub model that is neither cached nor reachable."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"the model '{base}' cannot be loaded: {reason}",
        f"fetch it where there is a network: hf download {base}",
    )


def _from_files(base: str, folder: Path, known: Mapping[str, Any] | None = None) -> Entry:
    known = known or {}
    config = _json(folder / "config.json")
    text = config.get("text_config") or config
    vocabulary = _added_tokens(folder)
    name, family = _family(text, vocabulary)
    template = known.get("template") or family.get("template", "plain")
    own: Mapping[str, Any] = family if family.get("template") == template else {}
    rope = text.get("rope_parameters") or {}
    entry = Entry(
        base=base,
        path=str(folder) if known or Path(base).expanduser().exists() else base,
        template=template,
        family=name,
        eos=own.get("eos", ""),
        pad=own.get("pad", ""),
        licence=known.get("licence", ""),
        arch=_arch(text),
        positions=text.get("max_position_embeddings"),
        rope_theta=rope.get("rope_theta", text.get("rope_theta")),
        adds_bos=_adds_bos(folder),
        bos=_bos(folder),
        known=bool(known),
    )
    original = _original(entry, text.get("eos_token_id"))
    if original is None:
        return entry
    return dataclasses.replace(entry, copy_of=original.base, untrained=original.untrained)


def _original(entry: Entry, eos_id: object) -> Entry | None:
    """The base of the catalog that a folder is a copy of, where that matters.

    Names do not tell: `_name_or_path` also stands in what was fine-tuned from a base. A base with
    untrained tokens is known by its sizes and by its own EOS, which its chat model does not have.
    """
    for name, facts in _data()["bases"].items():
        if "eos_id" in facts and facts["eos_id"] == eos_id:
            original = find(name)
            same = ("arch", "positions", "rope_theta", "family")
            if all(getattr(original, key) == getattr(entry, key) for key in same):
                return original
    return None


def _family(config: Mapping[str, Any], vocabulary: set[str]) -> tuple[str, Mapping[str, Any]]:
    for name, family in _data()["families"].items():
        fits = all(config.get(key) == value for key, value in family["match"].items())
        if fits and vocabulary.issuperset(needed_tokens(family["template"])):
            return name, family
    return "", {}


def _kinds(family: Mapping[str, Any]) -> dict[str, Any]:
    return {k: family[k] for k in ("qkv_bias", "qk_norm", "norms") if k in family}


def _arch(config: Mapping[str, Any]) -> Arch | None:
    same = [
        f
        for f in _data()["families"].values()
        if f["match"]["model_type"] == config.get("model_type")
    ]
    own: Mapping[str, Any] = same[0] if same else {}
    try:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or 0
        return Arch(
            hidden=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", own.get("tied", False))),
            # Whether the usual size is written down depends on the library that saved it.
            head_dim=0 if head_dim * heads == hidden else head_dim,
            **_kinds(own),
        )
    except KeyError:  # an architecture with other words: the planner does without
        return None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "fetch the model again") from None
    return data if isinstance(data, dict) else {}


def _added_tokens(folder: Path) -> set[str]:
    listed = _json(folder / "tokenizer.json").get("added_tokens") or []
    decoder = _json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return {t["content"] for t in [*listed, *decoder.values()]}


def _bos(folder: Path) -> str:
    bos = _json(folder / "tokenizer_config.json").get("bos_token") or ""
    return str(bos.get("content", "") if isinstance(bos, dict) else bos)


def _adds_bos(folder: Path) -> bool:
    """Whether this tokenizer begins every text with BOS of its own accord."""
    post = _json(folder / "tokenizer.json").get("post_processor") or {}
    for part in [post, *post.get("processors", [])]:
        single = part.get("single") or []
        if part.get("type") == "TemplateProcessing" and single and "SpecialToken" in single[0]:
            return True
    return bool(_json(folder / "tokenizer_config.json").get("add_bos_token"))
