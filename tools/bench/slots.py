"""How busy the slots of one worker are while there is work: 200 ranks of log-normal sleeps,
`processes=8`, local backend.

    python tools/bench/slots.py [--ranks 200] [--sigma 1.5] [--median-s 0.05]

Prints the share of slot time that ranks ran, from the first start until the queue was empty (the
last rank was started): what remains after that is the tail of the longest ranks, which no scheduler
can fill."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time

from thornback.executor import Executor, Job, RankContext, Stage

SLOTS = 8


def sleep(ctx: RankContext, duration_s: float) -> list[float]:
    """Sleep, and say from when to when on the machine's monotonic clock."""
    started = time.monotonic()
    time.sleep(duration_s)
    return [started, time.monotonic()]


def busy_share(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Return (share of slot time busy until the last start, length of that window in seconds)."""
    begin = min(start for start, _ in spans)
    empty = max(start for start, _ in spans)
    busy = sum(min(end, empty) - start for start, end in spans)
    return busy / (SLOTS * (empty - begin)), empty - begin


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=200)
    parser.add_argument("--sigma", type=float, default=1.5)
    parser.add_argument("--median-s", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    durations = [
        options.median_s * draw.lognormvariate(0, options.sigma) for _ in range(options.ranks)
    ]
    stage = Stage("sleep", sleep, items=durations, processes=SLOTS, max_gangs=1)
    with tempfile.TemporaryDirectory() as state:
        executor = Executor.on_local(state=state, cpus=SLOTS)
        results = executor.run(Job("slots", [stage])).results("sleep")
    spans = [(float(r[0]), float(r[1])) for r in results.values() if isinstance(r, list)]
    share, window_s = busy_share(spans)
    print(json.dumps({"busy_share": round(share, 3), "window_s": round(window_s, 2)}))


if __name__ == "__main__":
    main()
