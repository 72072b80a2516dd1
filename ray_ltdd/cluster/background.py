"""Work in a thread, beside a main thread that stays free for Ctrl-C."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_background(work: Callable[[], Any], name: str) -> Future[Any]:
    """Run `work` in a thread that does not outlive the interpreter.

    Ray Train and Ray Tune would take over Ctrl-C in the main thread: the one exits with 0, the other ends without saying that it was interrupted.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
