"""The standard library as it was before any user code ran.

User code shares the interpreter of its rank process and may replace functions for good:
`time.monotonic` (a frozen clock), `os.write`, `open` (a fake file system). What runs between ranks
therefore uses these copies of the modules, made when the fork server starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import fcntl as fcntl
    import io as io
    import os as os
    import pickle as pickle
    import resource as resource
    import select as select
    import signal as signal
    import time as time
    from builtins import open as open
else:
    import builtins
    import fcntl
    import io
    import os
    import pickle
    import resource
    import select
    import signal
    import time
    from types import SimpleNamespace

    fcntl, io, os, pickle, resource, select, signal, time = (
        SimpleNamespace(**vars(module))
        for module in (fcntl, io, os, pickle, resource, select, signal, time)
    )
    open = builtins.open  # a function of C, which looks nothing up
