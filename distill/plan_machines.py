"""Machines that a plan is made for: `8x80`, `2x8xH100`, and the one this process sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from distill.errors import UsageError

DEFAULT = "1x24,1x80,8x80,2x8x80"
"""The machines of a plan without `--on`."""
GB = 1e9
GIB = 2**30
"""Memory of GPUs is in GiB, as torch and nvidia-smi say it: an "80 GB" GPU has nearly 80 GiB."""
USABLE = 0.985
"""Share of the size on the label that CUDA offers: 79.1 of 80 GiB on an H100, 23.6 of 24 on an RTX
4090 (what torch says in its out-of-memory errors)."""

_FORM = re.compile(r"(?:(\d+)x)?(?:(\d+)x)?([a-z0-9][a-z0-9.-]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `memory` is the size on its label in GiB, rates in FLOP/s and bytes/s, price in US
    dollars per hour; `host` is the machine's memory per GPU in GB."""

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    host: float
    price: float

    @property
    def usable(self) -> float:
        """Bytes that a process can have of it, its CUDA context included."""
        return self.memory * GIB * USABLE


@dataclass(frozen=True, slots=True)
class Machine:
    """`nodes` machines of `gpus` equal GPUs; `label` is how it was asked for."""

    label: str
    nodes: int
    gpus: int
    gpu: Gpu

    @property
    def total(self) -> int:
        """All its GPUs."""
        return self.nodes * self.gpus

    @property
    def price(self) -> float:
        """US dollars per hour for all of it."""
        return self.total * self.gpu.price

    @property
    def said(self) -> str:
        """`two nodes of 8x80 GB` or `1x24 GB`."""
        each = f"{self.gpus}x{self.gpu.memory:.0f} GB"
        words = {1: "", 2: "two nodes of ", 3: "three nodes of ", 4: "four nodes of "}
        return words.get(self.nodes, f"{self.nodes} nodes of ") + each


def machines(asked: str = DEFAULT) -> list[Machine]:
    """`1x24,8xH100,2x8x80` as machines, each once. Raises UsageError."""
    words = [word.strip() for word in asked.split(",") if word.strip()]
    if not words:
        raise UsageError("--on names no machine", f"for example --on {DEFAULT}")
    return [machine(word) for word in dict.fromkeys(words)]


def machine(word: str) -> Machine:
    """One machine: GPUs x size in GB, or name of the GPU, with the number of nodes in front.

    `24`, `1x24`, `8xH100`, `2x8x80`; `here` are the GPUs of this one. Raises UsageError for
    anything else.
    """
    if word.lower() == "here":
        return _here()
    found = _FORM.fullmatch(word)
    if found is None:
        raise _unreadable(word)
    counts = [int(n) for n in found.groups()[:2] if n is not None]
    nodes, gpus = counts if len(counts) == 2 else (1, counts[0] if counts else 1)
    if not (0 < nodes <= 1024 and 0 < gpus <= 64):
        raise _unreadable(word)
    return Machine(word, nodes, gpus, _gpu(found.group(3), word))


def _here() -> Machine:
    found = visible()
    if found is None:
        raise UsageError(
            "--on here: this machine shows no GPU (nvidia-smi)", f"for example --on {DEFAULT}"
        )
    return found


def _unreadable(word: str) -> UsageError:
    return UsageError(
        f"--on: '{word}' is not a machine",
        "GPUs x GB, with the number of nodes in front where there are several: 1x24, 8x80, "
        f"2x8x80; or by name: 8xH100; or here. Known: {', '.join(hardware()['gpus'])}",
    )


def _gpu(word: str, whole: str) -> Gpu:
    data = hardware()
    by_name = {name.lower().replace("-", ""): name for name in data["gpus"]}
    name = by_name.get(word.lower().replace("-", ""))
    if name is not None:
        return _as_gpu(name, data["gpus"][name])
    try:
        size = float(word.lower().removesuffix("gb"))
    except ValueError:
        raise _unreadable(whole) from None
    if not 4 <= size <= 1024:
        raise _unreadable(whole)
    nearest = min(data["sizes"], key=lambda known: abs(float(known) - size))
    name = data["sizes"][nearest]
    return _as_gpu(name, {**data["gpus"][name], "memory": size})


def _as_gpu(name: str, row: dict[str, Any]) -> Gpu:
    return Gpu(
        name=name,
        memory=float(row["memory"]),
        flops=row["bf16"] * 1e12,
        bandwidth=row["bandwidth"] * 1e9,
        link=row["link"] * 1e9,
        host=float(row["host"]),
        price=float(row["price"]),
    )


@cache
def hardware() -> dict[str, Any]:
    """`hardware.yaml` with the file of DISTILL_HARDWARE laid over it. Raises UsageError."""
    text = resources.files("distill").joinpath("hardware.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    own = os.environ.get("DISTILL_HARDWARE")
    if not own:
        return data
    try:
        changes = yaml.safe_load(Path(own).expanduser().read_text(encoding="utf-8")) or {}
        for section, rows in changes.items():
            for key, value in rows.items():
                old = data[section].get(key)
                data[section][key] = {**old, **value} if isinstance(old, dict) else value
        for name in (*data["gpus"], *data["sizes"].values()):
            _as_gpu(name, data["gpus"][name])
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"DISTILL_HARDWARE={own} cannot be used: {type(error).__name__}: {error}",
            "it has the sections of distill/hardware.yaml: {gpus: {H100: {price: 2.2}}}",
        ) from None
    return data


def assumed(key: str) -> float:
    """A number of the section `assumes`."""
    return float(hardware()["assumes"][key])


def visible() -> Machine | None:
    """The GPUs of this machine as `nvidia-smi` shows them, equal ones only; None where none is.

    No CUDA is initialised, and CUDA_VISIBLE_DEVICES is honoured in number.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    ask = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return from_smi(told, os.environ.get("CUDA_VISIBLE_DEVICES"))


def from_smi(told: str, shown: str | None = None) -> Machine | None:
    """The machine of `NAME, MiB` rows; `shown` is CUDA_VISIBLE_DEVICES. The smallest GPU counts."""
    rows = [line.rpartition(",") for line in told.splitlines() if "," in line]
    sizes = [(float(mib), name.strip()) for name, _, mib in rows if mib.strip().isdigit()]
    if shown is not None:
        sizes = sizes[: len([word for word in shown.split(",") if word.strip()])]
    if not sizes:
        return None
    mib, name = min(sizes)
    memory = mib / 1024
    plain = name.lower().replace(" ", "").replace("-", "")
    known = [k for k in hardware()["gpus"] if k.lower().partition("-")[0] in plain]
    nearest = min(
        known or list(hardware()["gpus"]),
        key=lambda k: abs(hardware()["gpus"][k]["memory"] - memory),
    )
    gpu = _as_gpu(nearest, {**hardware()["gpus"][nearest], "memory": round(memory, 1)})
    return Machine(f"{len(sizes)}x{memory:.0f}", 1, len(sizes), gpu)
