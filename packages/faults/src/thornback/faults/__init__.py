"""What went wrong in a distributed run, and is it worth retrying?"""

from thornback.faults.budgets import FaultBudget
from thornback.faults.classifier import DEFAULT_RULES, Classifier, explain
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
    "Fault",
    "FaultBudget",
    "FaultKind",
    "Origin",
    "RetryPolicy",
    "RetryVerdict",
    "Rule",
    "backoff_s",
    "explain",
    "is_retriable",
]
