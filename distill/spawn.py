"""Fresh interpreters at the other end of a pipe: how the workers of grading and filtering start.

Not multiprocessing: its spawned workers import the caller's `__main__`, so that a script without a
guard starts itself again and a notebook's imports torch.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from socket import socketpair

_Process = subprocess.Popen[bytes]
_Order = tuple["Future[_Process]", Callable[[], _Process]]

_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "importlib.import_module(sys.argv[1]).main(*map(int, sys.argv[2:]))"
)
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

_orders: queue.SimpleQueue[_Order] | None = None
_orders_lock = threading.Lock()


def spawn(module: str, *arguments: int) -> tuple[_Process, Connection]:
    """Start `main(descriptor, parent, *arguments)` of a module; returns the process and our end.

    `descriptor` is the worker's end of the pipe, `parent` our process id. The worker leads a
    session of its own, so that it can be killed with all that it started.
    """
    ours, theirs = socketpair()
    path = json.dumps([entry or os.getcwd() for entry in sys.path])
    with theirs:
        descriptor = theirs.fileno()
        numbers = [str(number) for number in (descriptor, os.getpid(), *arguments)]
        process = _started(
            lambda: subprocess.Popen(
                [sys.executable, "-c", _BOOT, module, *numbers, path],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=2,
                env={**os.environ, **_THREADS},
                start_new_session=True,
            )
        )
    return process, Connection(ours.detach())


def _started(start: Callable[[], _Process]) -> _Process:
    """A process that is started in a thread that never ends.

    The kernel kills a worker when the thread that started it ends, not when the process does, and
    a caller's thread (of an executor, of a notebook cell) may end long before its pool is closed.
    """
    global _orders
    with _orders_lock:
        if _orders is None:
            _orders = queue.SimpleQueue()
            threading.Thread(target=_starter, args=(_orders,), daemon=True).start()
        started: Future[_Process] = Future()
        _orders.put((started, start))
    return started.result()


def _starter(orders: queue.SimpleQueue[_Order]) -> None:
    while True:
        started, start = orders.get()
        try:
            started.set_result(start())
        except BaseException as error:
            started.set_exception(error)


def _forked() -> None:
    # A forked process has the caller's thread alone, and may have found the lock held.
    global _orders, _orders_lock
    _orders, _orders_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forked)
