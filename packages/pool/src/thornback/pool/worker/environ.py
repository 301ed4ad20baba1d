"""The environment variables of rank processes. Pure: what is inherited is an argument."""

from __future__ import annotations

from collections.abc import Mapping

from thornback.pool.ports import WorkerSpec

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Ray sets the first one for the whole worker, and its children would inherit it undivided."""
_GPUS = "CUDA_VISIBLE_DEVICES"


def worker_env(
    spec: WorkerSpec, inherited: Mapping[str, str], *, marker: str, node_index: int, nodes: int
) -> dict[str, str]:
    """Return the environment of the fork server: the same for all slots, and set before anything is
    imported."""
    threads = str(max(1, int(spec.cpus / spec.slots)))
    return {
        **inherited,
        **dict.fromkeys(_THREADS, threads),
        "THORNBACK_NODE_INDEX": str(node_index),
        "THORNBACK_NODES": str(nodes),
        **spec.env,
        "THORNBACK_WORKER": marker,
    }


def slot_env(spec: WorkerSpec, inherited: Mapping[str, str], slot: int) -> dict[str, str]:
    """Return what a rank process of this slot has besides: its number, and its share of the
    worker's GPUs.

    More slots than GPUs share them in turn. `CUDA_VISIBLE_DEVICES` given in the spec is left as it
    is.
    """
    env = {"THORNBACK_SLOT": str(slot)}
    gpus = [each for each in inherited.get(_GPUS, "").split(",") if each.strip()]
    if gpus and _GPUS not in spec.env:
        each = len(gpus) // spec.slots
        mine = gpus[slot * each : (slot + 1) * each] if each else [gpus[slot % len(gpus)]]
        env[_GPUS] = ",".join(mine)
    return env
