"""Where the processes of one training meet: what to do, which folder, who failed, when it is over.

One TCPStore at MASTER_ADDR:MASTER_PORT, which torchrun's agent holds or the first process opens.
It carries the request, so that only the first node needs the recipe, and the prepared files to
nodes that do not see the first one's folder.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.errors import DistillError

log = logging.getLogger(__name__)

BEAT_S = 2.0
STALE_S = 300.0
"""A node that says nothing for so long is given up, and so is the training on all others.

It is long because a call that holds Python's lock while it loads weights is silent, too.
"""
SEEN_S = 15.0
"""A network file system may show a new file so much later on another node."""
CHUNK = 4 << 20
HOUR = datetime.timedelta(hours=1)


class Meeting:
    """This process's place among all of a training, and what they tell each other.

    `rank` and `world` count processes, `node` and `nodes` machines; `local` is the rank within
    the node. Every wait ends when the store does, that is with the first node.
    """

    def __init__(self, patience: datetime.timedelta = HOUR) -> None:
        from torch.distributed import PrefixStore, TCPStore

        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE") or self.world)
        self.node = int(os.environ.get("GROUP_RANK", self.rank // per_node))
        self.nodes = int(os.environ.get("GROUP_WORLD_SIZE", -(-self.world // per_node)))
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._prefix = f"distill/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._tcp = TCPStore(
            *self._address,
            is_master=self.rank == 0 and not agent,
            wait_for_workers=False,
            multi_tenant=True,
            timeout=patience,
        )
        self._store = PrefixStore(self._prefix, self._tcp)
        self._over = threading.Event()

    def tell(self, key: str, content: Any) -> None:
        """Let all others `hear` it."""
        self._store.set(key, json.dumps(content))

    def hear(self, key: str) -> Any:
        """Wait until somebody tells it. Raises DistillError when the first node has gone."""
        try:
            while not self._store.check([key]):
                time.sleep(0.2)
            return json.loads(self._store.get(key))
        except (RuntimeError, ValueError) as error:
            raise _gone() from error

    def everybody(self, key: str) -> None:
        """Wait until all processes came here."""
        if self._store.add(f"{key}/count", 1) == self.world:
            self.tell(key, True)
        self.hear(key)

    def end(self) -> None:
        """The first process says that the training is over, and waits until all others know."""
        if self.rank == 0:
            self.tell("over", True)
            until = time.monotonic() + STALE_S
            while self._store.add("left", 0) < self.world - 1 and time.monotonic() < until:
                time.sleep(0.05)
        else:
            self.hear("over")
            self._store.add("left", 1)
        self._over.set()

    def fail(self, what: dict[str, Any]) -> None:
        """Tell all nodes why this process ends; the first word stays."""
        what = {**what, "rank": self.rank, "host": socket.gethostname()}
        try:
            self._store.compare_set("failed", "", json.dumps(what))
        except (RuntimeError, ValueError):
            log.warning("the first node has gone; it is not told of: %s", what.get("message"))

    # -- one node that dies is all of them -----------------------------------------------------

    def watch(self, on_failure: Any) -> None:
        """From now on end this process when another node fails, leaves early or falls silent.

        Collectives notice a lost peer late (NCCL's own limit is minutes) or not at all.
        `on_failure` is called with the reason before the process ends.
        """
        if self.nodes < 2 or self.local:
            return
        thread = threading.Thread(target=self._watch, args=(on_failure,), daemon=True)
        thread.start()

    def _watch(self, on_failure: Any) -> None:
        from torch.distributed import PrefixStore, TCPStore

        # A connection of its own: a store's client serves one call at a time.
        own = TCPStore(*self._address, is_master=False, wait_for_workers=False, timeout=HOUR)
        store = PrefixStore(self._prefix, own)
        seen = {node: ("", time.monotonic()) for node in range(self.nodes) if node != self.node}
        number = 0
        why: dict[str, Any] | None = None
        while why is None and not self._over.wait(BEAT_S):
            number += 1
            try:
                store.set(f"beat/{self.node}", f"{number} {socket.gethostname()}")
                if store.check(["failed"]):
                    why = json.loads(store.get("failed"))
                    break
                for node, (last, since) in seen.items():
                    key = f"beat/{node}"
                    beat = store.get(key).decode() if store.check([key]) else ""
                    if beat != last:
                        seen[node] = (beat, time.monotonic())
                    elif time.monotonic() - since > STALE_S:
                        name = last.partition(" ")[2] or f"number {node + 1}"
                        why = {"message": f"node {name} has been silent for {STALE_S:.0f} s"}
            except (RuntimeError, ValueError):
                why = {"message": _gone().message}
        if why is not None and not self._over.is_set():
            on_failure(why)
            os._exit(1)

    # -- files ---------------------------------------------------------------------------------

    def same_folder(self, folder: Path) -> bool:
        """Whether this process's node sees the first process's `folder`; all must call it."""
        mark = f".seen-{os.environ.get('TORCHELASTIC_RUN_ID', '')}-{os.getpid()}"
        if self.rank == 0:
            (folder / mark).touch()
            self.tell("mark", mark)
        mark = self.hear("mark")
        if self.local == 0:
            self.tell(f"shared/{self.node}", _appears(folder / mark))
        answer = bool(self.hear(f"shared/{self.node}"))
        self.everybody("looked")
        if self.rank == 0:
            (folder / mark).unlink(missing_ok=True)
        return answer

    def apart(self) -> list[int]:
        """The nodes that do not see the first process's folder; after `same_folder`."""
        return [node for node in range(self.nodes) if not self.hear(f"shared/{node}")]

    def send(self, folder: Path, names: Iterable[str], receivers: int) -> None:
        """Send files and folders of `folder` to `receivers` processes that `receive`."""
        files = []
        for name in names:
            path = folder / name
            inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            files += [p.relative_to(folder).as_posix() for p in inside if p.is_file()]
        self.tell("files", {name: (folder / name).stat().st_size for name in files})
        number = 0
        for name in files:
            with (folder / name).open("rb") as file:
                while block := file.read(CHUNK):
                    self._store.set(f"chunk/{number}", block)
                    # One chunk at a time: the store lives in the memory of the first node.
                    while self._store.add(f"got/{number}", 0) < receivers:
                        time.sleep(0.002)
                    self._store.delete_key(f"chunk/{number}")
                    number += 1

    def receive(self, folder: Path) -> None:
        """Write what the first process sends into `folder`."""
        number = 0
        for name, size in self.hear("files").items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while file.tell() < size:
                    try:
                        self._store.wait([f"chunk/{number}"])
                        file.write(self._store.get(f"chunk/{number}"))
                        self._store.add(f"got/{number}", 1)
                    except RuntimeError as error:
                        raise _gone() from error
                    number += 1


def _appears(path: Path) -> bool:
    end = time.monotonic() + SEEN_S
    while not path.exists():
        if not path.parent.is_dir() or time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _gone() -> DistillError:
    return DistillError(
        "the first node of the training has ended or cannot be reached any more",
        "its own output says why; the same command on all nodes goes on from the last checkpoint",
    )
