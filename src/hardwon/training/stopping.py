"""A training that is asked to stop: it finishes its step, leaves a checkpoint, and can go on later."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hardwon.errors import Stopped


@contextmanager
def interruptible(*, terminable: bool = False) -> Iterator[Callable[[], int]]:
    """Let a step finish when Ctrl-C or SIGTERM comes: only between steps weights and optimizer belong together.

    Yields a function that gives the number of the signal that came, 0 if none did. A second Ctrl-C stops at once.

    Args:
        terminable: whether SIGTERM is waited for as well; where nothing can be saved it ends the process as ever.
    """
    came = 0

    def note(number: int, _frame: Any) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = came or number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *([signal.SIGTERM] if terminable else []))}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int, step: int) -> None:
    """End a training that a signal came for, after its checkpoint was written.

    Raises:
        Stopped: after SIGTERM, which is how machines are taken away: the program ends with exit code 0.
        KeyboardInterrupt: after Ctrl-C.
    """
    if number == signal.SIGTERM:
        raise Stopped(f"stopped by SIGTERM after step {step}; the checkpoint is whole")
    raise KeyboardInterrupt
