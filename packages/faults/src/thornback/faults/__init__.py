"""What went wrong in a distributed run, and is it worth retrying?

- One line: `is_retriable`, `backoff_s`, `explain`.
- A retry loop: a `FaultHistory` for each call gives a `RetryVerdict` on every failure.
- The parts: a `Classifier` turns an exception into a `Fault` by its `Rule`s, and a `RetryPolicy`
  decides about it by the `FaultBudget` of its `FaultKind`.
- Sets of rules: `DEFAULT_RULES` are in every classifier, and `RAY_RULES` are those of them about
  Ray's exceptions. `NETWORK_RULES` and `THROTTLED_RULES` are opt-in: they are about errors of the
  user's own code that may go away, and only the user knows that to try again does no harm.
- Failures that come over a wire: `ErrorRecord` is an exception as data, `ErrorData` any such data.

All of it is pure: no clock, no randomness, no I/O. Jitter is an argument (`draw`).
"""

from thornback.faults.budgets import FaultBudget
from thornback.faults.classifier import DEFAULT_RULES, Classifier, Explanation, Trial, explain
from thornback.faults.history import FaultHistory
from thornback.faults.kinds import ErrorData, Fault, FaultKind, Origin
from thornback.faults.on_ray import RAY_RULES
from thornback.faults.opt_in import NETWORK_RULES, THROTTLED_RULES
from thornback.faults.policy import RetryPolicy, RetryVerdict, backoff_s, is_retriable
from thornback.faults.records import ErrorRecord
from thornback.faults.rules import Rule

__all__ = [
    "DEFAULT_RULES",
    "NETWORK_RULES",
    "RAY_RULES",
    "THROTTLED_RULES",
    "Classifier",
    "ErrorData",
    "ErrorRecord",
    "Explanation",
    "Fault",
    "FaultBudget",
    "FaultHistory",
    "FaultKind",
    "Origin",
    "RetryPolicy",
    "RetryVerdict",
    "Rule",
    "Trial",
    "backoff_s",
    "explain",
    "is_retriable",
]
