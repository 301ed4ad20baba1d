"""Checks a `runtime_env` without Ray: its types, and whether local files exist."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

from thornback.executor.errors import UsageError
from thornback.executor.paths import is_url
from thornback.faults import redact

_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.xz")
_REQUIREMENTS = ("pip", "uv")


def check_types(env: Mapping[str, object], where: str) -> None:
    """Return if the values are of the right types, as far as that is certain without Ray.

    Args:
        env: as the user gave it.
        where: whose it is, for the error.

    Raises:
        UsageError: one is not.
    """
    for name, value in env.items():
        if not isinstance(name, str) or not name:
            raise UsageError(
                f"{where}: runtime_env={{{name!r}: ...}}: expected a name such as 'pip' or "
                "'env_vars'"
            )
        if value is None or name not in _TYPES:
            continue
        fits, expected = _TYPES[name]
        if not fits(value):
            # Of variables only the types: their values may be secret.
            shown = _types_in(value) if name == "env_vars" else redact(reprlib.repr(value))
            raise UsageError(
                f"{where}: runtime_env={{{name!r}: ...}} is {shown}, expected {expected}"
            )


def resolved(env: Mapping[str, object], cwd: str) -> dict[str, object]:
    """Return it with absolute local paths: workers, and threads of this process, may be elsewhere.

    Pure. Imported modules in `py_modules` become the paths of their files. URIs stay.
    """
    found = dict(env)
    if isinstance(directory := env.get("working_dir"), str | os.PathLike):
        found["working_dir"] = _absolute(directory, cwd)
    if isinstance(modules := env.get("py_modules"), list | tuple):
        found["py_modules"] = [_absolute(_path_of(module), cwd) for module in modules]
    for name in _REQUIREMENTS:
        value = env.get(name)
        if isinstance(value, str):
            found[name] = _absolute(value, cwd)
        elif isinstance(value, Mapping) and isinstance(value.get("packages"), str):
            found[name] = {**value, "packages": _absolute(value["packages"], cwd)}
    if _is_conda_file(conda := env.get("conda")):
        found["conda"] = _absolute(str(conda), cwd)
    return found


def check_files(env: Mapping[str, object], where: str) -> None:
    """Return if the local files that it names exist on this machine.

    Args:
        env: resolved.
        where: whose it is, for the error.

    Raises:
        UsageError: one does not, or is of no use.
    """
    for field, path, is_wanted, wanted in _files(env):
        if not is_wanted(path):
            what = "is something else" if os.path.exists(path) else "does not exist on this machine"
            raise UsageError(
                f"{where}: runtime_env={{{field!r}: ...}} names {path!r}, which {what}: expected "
                f"{wanted}"
            )


def _files(
    env: Mapping[str, object],
) -> Iterator[tuple[str, str, Callable[[str], bool], str]]:
    """Yield field, path, what must hold of the path, and that in words."""
    if _is_local(directory := env.get("working_dir")):
        wanted = f"a folder, or an archive ({', '.join(_ARCHIVES)}), which is uploaded; or a URI"
        yield "working_dir", str(directory), _is_folder_or_archive, wanted
    for module in _list(env.get("py_modules")):
        if _is_local(module):
            yield "py_modules", str(module), os.path.exists, "a folder, module or wheel; or a URI"
    for name in _REQUIREMENTS:
        value = env.get(name)
        path = value.get("packages") if isinstance(value, Mapping) else value
        if isinstance(path, str):
            yield name, path, os.path.isfile, f"a file of requirements; or a list: {name}=['six']"
    if _is_conda_file(conda := env.get("conda")):
        yield "conda", str(conda), os.path.isfile, "a YAML file; or the name of an environment"


def _is_folder_or_archive(path: str) -> bool:
    return os.path.isdir(path) or (os.path.isfile(path) and path.endswith(_ARCHIVES))


def _is_local(value: object) -> bool:
    return isinstance(value, str) and not is_url(value)


def _is_conda_file(value: object) -> bool:
    return isinstance(value, str | os.PathLike) and str(value).endswith((".yaml", ".yml"))


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _path_of(module: object) -> object:
    """Return where an imported module is, as Ray does."""
    if not isinstance(module, ModuleType):
        return module
    folders = list(getattr(module, "__path__", ()))
    return folders[0] if len(folders) == 1 else getattr(module, "__file__", None) or module


def _absolute(path: object, cwd: str) -> object:
    if not isinstance(path, str | os.PathLike):
        return path
    text = os.fspath(path)
    if not isinstance(text, str) or is_url(text):
        return text
    return os.path.normpath(os.path.join(cwd, text))


def _types_in(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    wrong = {k: type(v).__name__ for k, v in value.items() if not _is_text_pair(k, v)}
    return "{" + ", ".join(f"{k!r}: <{kind}>" for k, kind in list(wrong.items())[:3]) + "}"


def _is_text_pair(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, str)


def _are_variables(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_text_pair(*pair) for pair in value.items())


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def _are_modules(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        _is_path(each) or isinstance(each, ModuleType) for each in value
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_hook(value: object) -> bool:
    return isinstance(value, str) or callable(value)


_TYPES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "env_vars": (_are_variables, "variables by name, with texts as values: {'N': '1'}"),
    "working_dir": (_is_path, "a path or a URI"),
    "py_modules": (_are_modules, "a list of paths, URIs or imported modules"),
    "excludes": (_are_texts, "a list of patterns, as in a .gitignore"),
    "worker_process_setup_hook": (_is_hook, "a function, or its name: 'package.module.function'"),
}
