# SPDX-License-Identifier: Apache-2.0
"""Being asked to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stop:
    """Remembers SIGTERM or SIGINT; a second SIGINT interrupts at once."""

    name = ""  # of the signal, once there was one

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Catch SIGTERM and SIGINT meanwhile, if this is the main thread: no other may."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
