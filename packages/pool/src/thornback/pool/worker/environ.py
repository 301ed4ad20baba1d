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
    gpus = _gpus(spec, inherited)
    if gpus:
        env[_GPUS] = ",".join(own_gpus(spec, inherited, slot) or (gpus[slot % len(gpus)],))
    return env


def own_gpus(spec: WorkerSpec, inherited: Mapping[str, str], slot: int) -> tuple[str, ...]:
    """Return the GPUs of this slot that no other slot of the worker uses."""
    gpus = _gpus(spec, inherited)
    each = len(gpus) // spec.slots
    return gpus[slot * each : (slot + 1) * each]


def _gpus(spec: WorkerSpec, inherited: Mapping[str, str]) -> tuple[str, ...]:
    """Return the GPUs of the worker; none if the spec sets `CUDA_VISIBLE_DEVICES` itself."""
    if _GPUS in spec.env:
        return ()
    return tuple(each for each in inherited.get(_GPUS, "").split(",") if each.strip())
