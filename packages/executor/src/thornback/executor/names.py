"""Names of functions and classes that are the same in every process. Pure.

The script of a process is the module `__main__`; in a process that `multiprocessing` spawned it is
`__mp_main__`, and tools that run scripts give it similar names. By import the same file has another
name. So where a script is on either side, only qualified names are compared.
"""

from __future__ import annotations

MAIN = "__main__"
_MARK = "__"


def is_main(module: object) -> bool:
    """Return whether this names a script that no other process can import by this name."""
    if not isinstance(module, str):
        return True  # code without a module: exec, a shell
    top = module.partition(".")[0]
    return top != "__future__" and top.startswith(_MARK) and top.endswith(_MARK)


def module_of(value: object) -> str:
    """Return the module of a function or class; `__main__` stands for every kind of script."""
    module = _attribute(value, "__module__")
    return module if isinstance(module, str) and not is_main(module) else MAIN


def function_name(fn: object) -> str:
    """Return `module.qualname` of a function, or of the class of a callable object."""
    inner = _attribute(fn, "func", fn)  # functools.partial
    qualname = _attribute(inner, "__qualname__")
    if isinstance(qualname, str):
        return f"{module_of(inner)}.{qualname}"
    return f"{module_of(type(inner))}.{_attribute(type(inner), '__qualname__')}"


def _attribute(value: object, name: str, default: object = None) -> object:
    """Return an attribute; the default where there is none, or a hostile object raises."""
    try:
        if isinstance(value, type):
            return type.__getattribute__(value, name)  # not what a metaclass says
        return getattr(value, name, default)
    except Exception:  # noqa: BLE001  # user code
        return default


def same_name(one: str, other: str) -> bool:
    """Return whether two names of `function_name` may name the same function."""
    if one == other:
        return True
    for script, name in ((one, other), (other, one)):
        module, _, qualname = script.partition(".")
        if is_main(module) and (name == qualname or name.endswith(f".{qualname}")):
            return True
    return False
