"""Errors of GPUs, and of what runs on them: PyTorch, NCCL, CuPy, JAX, TensorFlow, vLLM.

Hardware that says so itself, and engines whose process died, are in every classifier. What the code
may have caused (a full GPU), and what depends on others (a peer of a collective), is opt-in.

Sources: PyTorch's `torch/csrc/Exceptions.cpp` and `ProcessGroupNCCL.cpp`; vLLM's
`v1/engine/exceptions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from thornback.faults.gpu import HARDWARE, is_gpu_fault, loses_gpu
from thornback.faults.kinds import Attribute, ErrorData, FaultKind, Origin
from thornback.faults.rules import Rule

R, N = FaultKind.RESOURCE, FaultKind.NETWORK
RUNTIME = "builtins.RuntimeError"
DIST = "torch.distributed.DistBackendError"
PEER = "another process of the collective is gone, or cannot be reached"
GPU = "the GPU, or its driver, is out of order: another machine may do"
FULL = "the memory of the GPU is full"

DEVICE_NUMBER = re.compile(r"\b(?:cuda:|GPU[ :]|device[ :=])(\d{1,3})\b(?!:)", re.IGNORECASE)


def _rule(
    name: str, kind: FaultKind, why: str, *texts: str, types: tuple[str, ...] = (RUNTIME,)
) -> Rule:
    return Rule(name=name, kind=kind, origins=(Origin.RANK,), types=types, texts=texts, why=why)


GPU_RULES = (
    *(_rule(f"gpu.{text.replace(' ', '_')}", R, GPU, text) for text in HARDWARE),
    _rule(
        "gpu.engine_dead",
        FaultKind.WORKER_CRASH,
        "the process of an inference engine died",
        types=(
            "vllm.v1.engine.exceptions.EngineDeadError",
            "vllm.engine.async_llm_engine.AsyncEngineDeadError",
            "vllm.engine.multiprocessing.MQEngineDeadError",
        ),
    ),
    _rule(
        "gpu.engine_unborn",
        FaultKind.SETUP,
        "the process of an inference engine did not start",
        "Engine core initialization failed",
    ),
)
"""In every classifier."""

CUDA_RULES = (
    _rule(
        "cuda.out_of_memory",
        R,
        FULL,
        types=(
            "torch.OutOfMemoryError",
            "torch.cuda.OutOfMemoryError",  # until torch 2.4
            "cupy.cuda.memory.OutOfMemoryError",
            "tensorflow.python.framework.errors_impl.ResourceExhaustedError",
        ),
    ),
    *(
        _rule(f"cuda.out_of_memory_{name}", R, FULL, text)
        for name, text in (
            ("text", "CUDA out of memory"),
            ("error", "CUDA error: out of memory"),
            ("jax", "RESOURCE_EXHAUSTED: Out of memory"),
            # What the libraries of CUDA make of a GPU that has no room for their workspace.
            ("cublas", "CUBLAS_STATUS_ALLOC_FAILED"),
            ("cublas_start", "CUBLAS_STATUS_NOT_INITIALIZED"),
            ("cudnn", "CUDNN_STATUS_ALLOC_FAILED"),
            ("cudnn_start", "CUDNN_STATUS_NOT_INITIALIZED"),
        )
    ),
    *(
        _rule(f"cuda.{name}", R, GPU, text)
        for name, text in (
            ("busy", "CUDA-capable device(s) is/are busy or unavailable"),
            ("all_busy", "CUDA-capable devices are busy or unavailable"),
            ("none", "no CUDA-capable device is detected"),
            ("driver", "CUDA driver initialization failed"),
            ("unknown", "CUDA unknown error"),
            ("fabric", "CUDA error: system not yet initialized"),
        )
    ),
    _rule(
        "nccl.names",
        N,
        PEER,
        types=("torch.distributed.DistNetworkError", "torch.distributed.DistStoreError"),
    ),
    *(
        _rule(f"nccl.{name}", N, PEER, text, types=(DIST,))
        for name, text in (
            ("remote", "ncclRemoteError"),
            ("remote_text", "remote process exited"),
            ("system", "ncclSystemError"),
            ("closed", "Connection closed by"),
            ("reset", "Connection reset by"),
            ("timed_out", "timed out"),
            ("timeout", "timeout"),
            ("aborted", "communicator was aborted"),
        )
    ),
    *(
        _rule(f"nccl.plain_{name}", N, PEER, *texts)
        for name, texts in (
            ("remote", ("NCCL error", "remote process exited")),
            ("aborted", ("NCCL communicator was aborted",)),
            ("watchdog", ("caught collective operation timeout", "WorkNCCL")),
            ("watchdog_ended", ("Process group watchdog thread terminated with exception",)),
            ("gloo", ("gloo/transport/", "connection")),
        )
    ),
)
"""A GPU is full or busy (RESOURCE: another machine), or a peer of a collective is gone (NETWORK):
by the names and texts of PyTorch, CuPy, JAX and TensorFlow. Asserts and illegal accesses on the
device, and wrong usage of NCCL, stay what they are: bugs. Broken GPUs need no opting in."""


def gpu_facts(error: ErrorData, facts: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Return what an exception and its causes say of the GPU, as facts.

    - `gpu_fault`: it is evidence against the GPU (`is_gpu_fault`, with the fact `healthy_before`).
    - `gpu_context_lost`: this process cannot use its GPU any more (`loses_gpu`).
    - `gpu_device`: the number of the GPU, if the text names it: as the process counts them, after
      `CUDA_VISIBLE_DEVICES`.
    """
    if not loses_gpu(error):
        return {}
    found: dict[str, Attribute] = {"gpu_context_lost": True}
    if is_gpu_fault(error, healthy_before=facts.get("healthy_before") is True):
        found["gpu_fault"] = True
        device = DEVICE_NUMBER.search(
            "\n".join([error.message, *(c.message for c in error.causes)])
        )
        if device is not None:
            found["gpu_device"] = int(device[1])
    return found
