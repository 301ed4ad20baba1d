"""Errors of GPUs, and of what runs on them: PyTorch, NCCL, CuPy, JAX, TensorFlow, vLLM.

Hardware that says so itself, and engines whose process died, are in every classifier. What the code
may have caused (a full GPU), and what depends on others (a peer of a collective), is opt-in.

Sources: PyTorch's `torch/csrc/Exceptions.cpp`, `c10/cuda/CUDAException.cpp` and
`ProcessGroupNCCL.cpp`; CUDA's runtime API, `cudaError_t`; vLLM's `v1/engine/exceptions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from thornback.faults.kinds import Attribute, ErrorData, FaultKind, Origin
from thornback.faults.rules import Rule

R, N = FaultKind.RESOURCE, FaultKind.NETWORK
RUNTIME = "builtins.RuntimeError"
DIST = "torch.distributed.DistBackendError"
PEER = "another process of the collective is gone, or cannot be reached"
GPU = "the GPU, or its driver, is out of order: another machine may do"
FULL = "the memory of the GPU is full"

BROKEN_TEXTS = (
    ("ecc", "uncorrectable ECC error"),
    ("ecc_code", "ECC_UNCORRECTABLE"),
    ("ecc_name", "ECCUncorrectable"),
    ("nvlink", "uncorrectable NVLink error"),
    ("off_the_bus", "fallen off the bus"),
    ("lost", "GPU is lost"),
    ("reset", "GPU requires reset"),
    ("hardware", "hardware stack error"),
    ("xid", "NVRM: Xid"),
)
"""Only the hardware or its driver says so, whatever the code did."""
LAUNCH_FAILURE = (
    "unspecified launch failure",
    "cudaErrorLaunchFailure",
    "CUDA_ERROR_LAUNCH_FAILED",
)
CONTEXT_LOST = (
    *LAUNCH_FAILURE,
    "illegal memory access",
    "device-side assert",
    "misaligned address",
    "an illegal instruction was encountered",
)
"""After these, every further call of the same process fails. Code causes them as hardware does."""
DEVICE = re.compile(r"\b(?:cuda:|GPU[ :]|device[ :=])(\d{1,3})\b(?!:)", re.IGNORECASE)


def _rule(
    name: str, kind: FaultKind, why: str, *texts: str, types: tuple[str, ...] = (RUNTIME,)
) -> Rule:
    return Rule(name=name, kind=kind, origins=(Origin.RANK,), types=types, texts=texts, why=why)


GPU_RULES = (
    *(_rule(f"gpu.{name}", R, GPU, text) for name, text in BROKEN_TEXTS),
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


def gpu_facts(errors: Sequence[ErrorData], facts: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Return what the texts of an exception and its causes say of the GPU itself.

    - `gpu_context_lost`: the CUDA context of this process is lost; only a new process gets another.
    - `gpu_fault`: the GPU is to blame: its hardware says so, a kernel failed to launch, or the
      context was lost in a process that had done other work before (`healthy_before`).
    - `gpu_device`: its number, if the text names it: as the process sees it, after
      `CUDA_VISIBLE_DEVICES`.
    """
    found: dict[str, Attribute] = {}
    for error in errors:
        if RUNTIME not in error.type_names:
            continue
        said = error.message.lower()
        lost = any(text.lower() in said for text in CONTEXT_LOST)
        healthy = facts.get("healthy_before") is True
        launch = any(text.lower() in said for text in LAUNCH_FAILURE)
        broken = any(text.lower() in said for _, text in BROKEN_TEXTS)
        if lost:
            found["gpu_context_lost"] = True
        if broken or launch or (lost and healthy):
            found["gpu_fault"] = True
            device = DEVICE.search(error.message)
            if device is not None:
                found.setdefault("gpu_device", int(device[1]))
    return found
