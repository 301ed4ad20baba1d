"""Calls to a store that may never answer, made by a rank process that must go on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Apart:
    """Makes calls in threads that nobody waits for longer than they may take; one at a time.

    A call that was given up goes on alone. While it does, others are refused: each would be one
    thread more, and one more wait for a store that hangs.
    """

    def __init__(self) -> None:
        self._stuck: threading.Thread | None = None

    def call(self, function: Callable[[], object], *, limit_s: float) -> None:
        """Call it, and return when it has returned.

        Raises:
            TimeoutError: it has not within `limit_s`, or an earlier one has still not.
            BaseException: what it raised.
        """
        if self._stuck is not None and self._stuck.is_alive():
            raise TimeoutError("it does not answer: an earlier call has still not returned")
        errors: list[BaseException] = []

        def body() -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the caller's
                errors.append(error)

        thread = threading.Thread(target=body, name="thornback-store", daemon=True)
        thread.start()
        thread.join(limit_s)
        if thread.is_alive():
            self._stuck = thread
            raise TimeoutError(f"it did not answer within {limit_s:g} s")
        if errors:
            raise errors[0]
