"""Tells GPU failures from other errors. Pure.

Texts decide, not classes: CUDA has no exceptions, and each library raises CUDA's texts in a class
of its own.

Sources: the texts of `cudaGetErrorString` (CUDA runtime API, `cudaError_t`); PyTorch's
`c10/cuda/CUDAException.cpp` and `torch/cuda/__init__.py`; NVML's `nvmlErrorString`.
"""

from __future__ import annotations

from collections.abc import Iterator

from thornback.faults.kinds import ErrorData

HARDWARE = (
    "uncorrectable ecc error",
    "ecc_uncorrectable",
    "eccuncorrectable",
    "uncorrectable nvlink error",
    "fallen off the bus",
    "gpu is lost",
    "gpu requires reset",
    "hardware stack error",
)
"""Reported by the hardware or its driver only, whatever the code did."""
DEVICE = (
    "cuda-capable device(s) is/are busy or unavailable",
    "cuda-capable devices are busy or unavailable",
    "no cuda-capable device is detected",
    "cuda driver initialization failed",
    "cuda unknown error",
    "cuda error: unknown error",
    "cuda error: initialization error",
    "cuda error: system not yet initialized",
    "cuda error: context is destroyed",
)
"""The GPU or its driver does not answer. A fresh process may reach it again."""
CONTEXT = (
    "an illegal memory access was encountered",
    "cuda_error_illegal_address",
    "cudaerrorillegaladdress",
    "unspecified launch failure",
    "cuda_error_launch_failed",
    "cudaerrorlaunchfailure",
    "the launch timed out and was terminated",
    "an illegal instruction was encountered",
    "misaligned address",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
)
"""The CUDA context of the process is lost. Bugs cause this, and so does broken hardware."""
ASSERT = ("device-side assert", "cudaerrorassert", "cuda_error_assert")
"""The CUDA context is lost, too, but only bugs cause this."""


def is_gpu_broken(error: ErrorData) -> bool:
    """Return whether the hardware itself reports that the GPU is broken."""
    return _says(error, HARDWARE)


def is_gpu_fault(error: ErrorData, *, healthy_before: bool = False) -> bool:
    """Return whether one error is evidence against the GPU.

    Args:
        error: the exception; its causes and the members of a group are searched, too.
        healthy_before: other work has succeeded on the same GPU before. A lost context is evidence
            against the GPU only then: otherwise a bug is more likely.
    """
    context = CONTEXT if healthy_before else ()
    return _says(error, (*HARDWARE, *DEVICE, *context))


def loses_gpu(error: ErrorData) -> bool:
    """Return whether the process that raised this can no longer use its GPU."""
    return _says(error, (*HARDWARE, *DEVICE, *CONTEXT, *ASSERT))


def _says(error: ErrorData, texts: tuple[str, ...]) -> bool:
    messages = [each.message.lower() for each in _all(error)]
    return any(text in message for message in messages for text in texts)


def _all(error: ErrorData) -> Iterator[ErrorData]:
    """Yield an error, its causes, and the members of a group with their causes."""
    yield from (error, *error.causes, *error.members)
    for member in error.members:
        yield from member.causes
