"""Prepares the `runtime_env` of actors: uploads local files, by Ray's own packaging, as `ray.init`
does for a whole job. An actor of its own accepts URIs only.

Sources, ray 2.49 and 2.60: `_private/worker.py` `connect`, `_private/runtime_env`.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import attrs
import ray
from ray._private.runtime_env.packaging import package_exists, pin_runtime_env_uri
from ray._private.runtime_env.py_modules import upload_py_modules_if_needed
from ray._private.runtime_env.setup_hook import upload_worker_process_setup_hook_if_needed
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.exceptions import RayError, RuntimeEnvSetupError

from thornback.faults import ErrorRecord, setup_reason
from thornback.pool.ports import CaughtError

_LOG = logging.getLogger(__name__)
UPLOAD_S = 300.0
"""For the files to be read, packed and uploaded; Ray takes packages of at most 500 MiB."""
TRY_VARIABLE = "THORNBACK_RUNTIME_ENV_TRY"
_FILES = ("working_dir", "py_modules", "excludes")
_PREPARED = ("working_dir", "py_modules", "worker_process_setup_hook")
_IN_GCS = "gcs://"
_DETAIL_CHARS = 16_000
_HOOK = "the setup hook method"
"""In the text of an actor's death, if that was the hook's doing."""

T = TypeVar("T")


class UploadFailed(Exception):
    """A `runtime_env` could not be prepared in this process. No worker was asked for.

    Attributes:
        error: why.
        final: trying again would fail again.
    """

    def __init__(self, error: RuntimeEnvSetupError, *, final: bool) -> None:
        super().__init__(error, final)
        self.error = error
        self.final = final


@attrs.frozen(slots=True)
class _Upload:
    files: Mapping[str, object]
    """What the user named."""
    uris: Mapping[str, Any]
    """What stands for it."""

    def exists(self) -> bool:
        """Whether all packages are still in the GCS; keeps them there for another ten minutes.

        Ray deletes packages that no job refers to, ten minutes after the upload. Actors do not
        count, so a gang that opens later could not have them.
        """
        named = (self.uris.get("working_dir"), *self.uris.get("py_modules", ()))
        packages = [uri for uri in named if isinstance(uri, str) and uri.startswith(_IN_GCS)]
        for uri in packages:
            pin_runtime_env_uri(uri)
        return all(package_exists(uri) for uri in packages)


class RuntimeEnvs:
    """The runtime_envs of one run. Uploads each folder and file once, also for many actors and
    shapes. For one event loop."""

    def __init__(self) -> None:
        self._uploads: list[_Upload] = []
        self._failed: dict[str, int] = {}
        self._one_at_a_time = anyio.Lock()

    async def prepare(self, env: Mapping[str, object]) -> dict[str, Any]:
        """Return what an actor can be given for `env`.

        Raises:
            UploadFailed: it cannot be prepared, or not within `UPLOAD_S`.
        """
        if not any(env.get(name) for name in _PREPARED):
            plain = {name: value for name, value in env.items() if name not in _FILES}
            return self._told_apart(plain)  # must not wait for the uploads of other stages
        try:
            async with self._one_at_a_time:
                with anyio.fail_after(UPLOAD_S):
                    # A folder on a dead disk may hold this thread for good: nobody waits for it.
                    prepared = await anyio.to_thread.run_sync(
                        self._prepared, env, abandon_on_cancel=True
                    )
        except TimeoutError:
            raise UploadFailed(
                RuntimeEnvSetupError(
                    f"the local files of the runtime_env were not uploaded within {UPLOAD_S:g} s: "
                    f"{_named(env)}. Leave out what workers do not need by 'excludes', or put "
                    "the files where all nodes reach them"
                ),
                final=False,
            ) from None
        except RuntimeEnvSetupError as error:
            raise UploadFailed(error, final=False) from error
        except (TypeError, ValueError) as error:  # what Ray says of arguments
            said = RuntimeEnvSetupError(f"{error} ({_named(env)})")
            raise UploadFailed(said, final=True) from error
        except Exception as error:
            said = RuntimeEnvSetupError(f"{type(error).__name__}: {error} ({_named(env)})")
            raise UploadFailed(said, final=False) from error
        return self._told_apart(prepared)

    def failed(self, env: Mapping[str, object]) -> None:
        """Note that Ray could not build a prepared `env`, so that the next try is a real one.

        A node's agent remembers a failure for ten minutes, and answers with it without trying. It
        knows environments by all that is in them.
        """
        key = _key(env)
        self._failed[key] = self._failed.get(key, 0) + 1

    def _told_apart(self, env: dict[str, Any]) -> dict[str, Any]:
        tries = self._failed.get(_key(env), 0)
        if not tries:
            return env
        return {**env, "env_vars": {**(env.get("env_vars") or {}), TRY_VARIABLE: str(tries)}}

    def _prepared(self, env: Mapping[str, object]) -> dict[str, Any]:
        """Blocks."""
        files = {name: env[name] for name in _FILES if env.get(name)}
        rest = {name: value for name, value in env.items() if name not in _FILES}
        if "env_vars" in rest:
            rest["env_vars"] = dict(env["env_vars"] or {})  # type: ignore[call-overload]  # checked by Ray
        uris = self._uploaded(files) if {"working_dir", "py_modules"} & files.keys() else {}
        prepared = upload_worker_process_setup_hook_if_needed(
            {**rest, **uris}, ray._private.worker.global_worker
        )
        return dict(prepared)

    def _uploaded(self, files: Mapping[str, object]) -> Mapping[str, Any]:
        known = next((each for each in self._uploads if each.files == files), None)
        if known is not None and known.exists():
            return known.uris
        node = ray._private.worker._global_node
        assert node is not None  # this process is a driver
        scratch = node.get_runtime_env_dir_path()
        uris = dict(files)
        for upload in (upload_py_modules_if_needed, upload_working_dir_if_needed):
            uris = _call(upload, uris, scratch_dir=scratch, logger=_LOG)
        uris.pop("excludes", None)
        if known is not None:
            self._uploads.remove(known)
            if known.uris != uris:
                _LOG.warning(
                    "the files of the runtime_env have changed since the run began: workers that "
                    "start from now on have the new ones (%s)",
                    _named(files),
                )
        self._uploads.append(_Upload(files, uris))
        return uris


def explained(error: RayError) -> CaughtError | RayError:
    """Return a failed set-up as data, with what pip or uv said, or the hook raised, as its message.
    Any other error is returned as it is."""
    text = str(error)
    of_hook = _HOOK in text and not isinstance(error, RuntimeEnvSetupError)
    if not of_hook and not isinstance(error, RuntimeEnvSetupError):
        return error
    detail = text.rpartition(" lines of stdout:")[2]  # of pip or uv; else everything
    # The command line of pip may hold the password of an index, in any form.
    lines = [line for line in detail.splitlines() if not line.startswith("Command '")]
    return CaughtError(
        type_names=ErrorRecord.of(error).type_names,
        message=("worker_process_setup_hook (setup hook) raised " if of_hook else "")
        + setup_reason(text),
        traceback=textwrap.dedent("\n".join(lines))[-_DETAIL_CHARS:].strip("\n"),
    )


def _call(upload: Callable[..., T], uris: Mapping[str, Any], **arguments: object) -> T:
    """Call one of Ray's uploads. Ray 2.60 asks whether a .gitignore counts; in ray 2.49, and
    unless the user tells Ray otherwise, it does."""
    if "include_gitignore" in inspect.signature(upload).parameters:
        ignored = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") == "1"
        arguments["include_gitignore"] = not ignored
    return upload(uris, **arguments)


def _named(env: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={env[name]!r:.200}" for name in _FILES if env.get(name))


def _key(env: Mapping[str, object]) -> str:
    variables = env.get("env_vars")
    if isinstance(variables, Mapping):
        kept = {name: value for name, value in variables.items() if name != TRY_VARIABLE}
        env = {**env, "env_vars": kept}
    return json.dumps({k: v for k, v in env.items() if v}, sort_keys=True, default=repr)
