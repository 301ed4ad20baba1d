"""What went wrong in a distributed run, and is it worth retrying?

- One line: `is_retriable`, `backoff_s`, `explain`.
- A retry loop: a `FaultHistory` for each call gives a `RetryVerdict` on every failure.
- The parts: a `Classifier` turns an exception into a `Fault` by its `Rule`s, and a `RetryPolicy`
  decides about it by the `FaultBudget` of its `FaultKind`.
- Sets of rules: `DEFAULT_RULES` are in every classifier, and `RAY_RULES` are those of them about
  Ray's exceptions (`RAY_VERSIONS`: of which releases). `NETWORK_RULES`, `THROTTLED_RULES` and
  `CUDA_RULES` are opt-in: they are about errors of the user's own code that may go away, and only
  the user knows that to try again does no harm.
- Questions about one error: `is_gpu_fault`, `is_gpu_broken` and `loses_gpu`.
- Ray's `RuntimeEnvSetupError` says much: `setup_reason` returns what pip or uv said in it.
- Secrets in texts: `redact` removes what looks like one, `safe` cuts the text as well; a `Redactor`
  also removes known values. `looks_secret` judges the name of a field.
- Failures that come over a wire: `ErrorRecord` is an exception as data, `ErrorData` any such data.

All of it is pure: no clock, no randomness, no I/O. Jitter is an argument (`draw`).
"""

from thornback.faults.breaker import Breaker
from thornback.faults.budgets import FaultBudget
from thornback.faults.classifier import (
    DEFAULT_RULES,
    Classifier,
    Explanation,
    Trial,
    explain,
    root_cause,
)
from thornback.faults.gpu import is_gpu_broken, is_gpu_fault, loses_gpu
from thornback.faults.history import FaultHistory
from thornback.faults.kinds import ErrorData, Fault, FaultKind, Origin
from thornback.faults.on_gpu import CUDA_RULES
from thornback.faults.on_ray import RAY_RULES, RAY_VERSIONS
from thornback.faults.opt_in import NETWORK_RULES, THROTTLED_RULES
from thornback.faults.policy import RetryPolicy, backoff_s, is_retriable
from thornback.faults.records import ErrorRecord
from thornback.faults.redaction import Redactor, looks_secret, redact
from thornback.faults.rules import Rule
from thornback.faults.setup_text import setup_reason
from thornback.faults.text import safe
from thornback.faults.verdicts import RetryVerdict, Standing, StopReason, WeighedFault

__all__ = [
    "CUDA_RULES",
    "DEFAULT_RULES",
    "NETWORK_RULES",
    "RAY_RULES",
    "RAY_VERSIONS",
    "THROTTLED_RULES",
    "Breaker",
    "Classifier",
    "ErrorData",
    "ErrorRecord",
    "Explanation",
    "Fault",
    "FaultBudget",
    "FaultHistory",
    "FaultKind",
    "Origin",
    "Redactor",
    "RetryPolicy",
    "RetryVerdict",
    "Rule",
    "Standing",
    "StopReason",
    "Trial",
    "WeighedFault",
    "backoff_s",
    "explain",
    "is_gpu_broken",
    "is_gpu_fault",
    "is_retriable",
    "looks_secret",
    "loses_gpu",
    "redact",
    "root_cause",
    "safe",
    "setup_reason",
]
