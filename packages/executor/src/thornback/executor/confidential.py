"""Keeps secrets out of what a run says of itself.

A run is given secrets: in the URL of its state, in variables and options. `secrets_of` collects
them once per run; the driver hands the texts of errors and logs through the resulting `Redactor`
where they come in, so that whatever is made of them holds none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from thornback.executor.ports import Attribute, Classifier
from thornback.faults import ErrorData, ErrorRecord, Fault, Redactor, redact

_MAX_LINKS = 100


@attrs.frozen
class DiscreetClassifier:
    """Fulfils `Classifier`: the faults of another one, without known secrets."""

    classifier: Classifier
    redactor: Redactor

    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute], /
    ) -> Fault:
        """Return the fault, redacted."""
        fault = self.classifier.classify(error, facts)
        hide = self.redactor.redact
        return fault.__replace__(
            message=hide(fault.message),
            traceback=hide(fault.traceback),
            facts={k: hide(v) if isinstance(v, str) else v for k, v in fault.facts.items()},
        )


def secrets_of(
    state_url: str,
    env: Mapping[str, str],
    storage_options: Mapping[str, object],
    runtime_envs: Iterable[Mapping[str, object]],
) -> Redactor:
    """Return what removes the secrets that a run was given."""
    return Redactor.of(state_url, env, storage_options, *runtime_envs)


def shown_url(url: str) -> str:
    """Return a URL without the secrets in it. A path is what others open: it stays as it is."""
    return redact(url) if "://" in url else url


def names_only(variables: Mapping[str, object]) -> str:
    """Return how variables are printed: any value may be a secret."""
    return f"{{{', '.join(f'{name!r}: ...' for name in variables)}}}"


def without_secrets(value: object) -> str:
    """Return how a value is printed that may hold secrets: a URL, a `runtime_env`."""
    if isinstance(value, Mapping) and isinstance(variables := value.get("env_vars"), Mapping):
        value = {**value, "env_vars": dict.fromkeys(variables, "***")}
    return repr(Redactor().plain(value))


def conceal(error: BaseException, redactor: Redactor) -> None:
    """Remove secrets from an error of ours that leaves a run, and from its chain of causes.

    The texts of foreign exceptions cannot be changed: one that holds a secret is cut off, with what
    is below it. What we raise says in its own words what it was raised from.
    """
    for _ in range(_MAX_LINKS):
        if type(error).__module__.startswith("thornback."):
            texts = (redactor.redact(a) if isinstance(a, str) else a for a in error.args)
            error.args = tuple(texts)
        below = error.__cause__ or error.__context__
        if below is None:
            return
        if not type(below).__module__.startswith("thornback.") and _tells(below, redactor):
            error.__cause__ = None
            error.__suppress_context__ = True
            error.add_note(f"(raised from a {type(below).__qualname__} whose text holds a secret)")
            return
        error = below


def _tells(error: BaseException, redactor: Redactor) -> bool:
    text = ErrorRecord.of(error).message  # never raises, unlike str(error)
    return redactor.redact(text) != text
