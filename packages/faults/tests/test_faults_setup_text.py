"""What pip, uv, conda and Ray were seen to write when a runtime_env could not be built."""

from __future__ import annotations

import pytest

from thornback.faults import Classifier, FaultKind, is_retriable, setup_reason
from thornback.faults.setup_text import is_final
from thornback.faults.testing import lookalike

HEAD = """\
Failed to set up runtime environment.
Could not create the actor because its associated runtime env failed to be created.
[Node 10.0.0.1] Traceback (most recent call last):
  File "ray/_private/runtime_env/agent/runtime_env_agent.py", line 561, in _create_runtime_env
    runtime_env_context = await asyncio.wait_for(
"""
TOOL = """\
ray._private.runtime_env.utils.SubprocessCalledProcessError: Run cmd[3] failed with the following \
details.
Command '['python', '-m', 'pip', 'install']' returned non-zero exit status 1.
Last 50 lines of stdout:
"""
NO_PACKAGE = """\
    Looking in indexes: https://index.example/simple
    ERROR: Could not find a version that satisfies the requirement no-such (from versions: none)
    ERROR: No matching distribution found for no-such
"""
RETRYING = (
    "    WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) "
    "after connection broken by 'NewConnectionError(\"[Errno 111] Connection refused\")': /six/\n"
)
CONFLICT = """\
    Collecting six==1.15.0
    ERROR: Cannot install six==1.15.0 and six==1.16.0 because these package versions have \
conflicting dependencies.
    ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/
"""
NO_BUILD = """\
    Processing /code/broken
      error: subprocess-exited-with-error
      \N{MULTIPLICATION SIGN} Getting requirements to build wheel did not run successfully.
          RuntimeError: this build is broken
    ERROR: Failed to build 'file:///code/broken' when getting requirements to build wheel
"""
KILLED = """\
      error: subprocess-exited-with-error
          gcc: fatal error: Killed signal terminated program cc1plus
    ERROR: Failed building wheel for slow
    ERROR: Failed to build installable wheels for some pyproject.toml based projects (slow)
"""
UV_NO_PACKAGE = """\
    Using Python 3.11.7 environment at: /tmp/virtualenv
    error: No solution found when resolving dependencies
      cause: Because no-such was not found in the package registry
"""
UV_OLD = """\
      \N{MULTIPLICATION SIGN} No solution found when resolving dependencies:
      ╰─▶ Because no-such was not found in the package registry
"""
UV_OFFLINE = """\
    error: Request failed after 3 retries in 10.5s
      cause: Failed to fetch: http://127.0.0.1:9/simple/six/
      cause: Connection refused (os error 111)
"""
CHAIN = "FileNotFoundError: [Errno 2] No such file or directory: 'conda'\n\nDuring handling of\n\n"


@pytest.mark.parametrize(
    ("text", "final", "first_line"),
    [
        (TOOL + NO_PACKAGE, True, "ERROR: Could not find a version that satisfies the requirement"),
        (TOOL + RETRYING + NO_PACKAGE, False, "WARNING: Retrying"),
        (TOOL + CONFLICT, True, "ERROR: Cannot install six==1.15.0 and six==1.16.0"),
        (TOOL + NO_BUILD, True, "error: subprocess-exited-with-error"),
        (TOOL + KILLED, False, "error: subprocess-exited-with-error"),
        (TOOL + "    no such option: --nope\n", True, "no such option: --nope"),
        (TOOL + "    ERROR: Invalid requirement: 'a b'\n", True, "ERROR: Invalid requirement"),
        (TOOL + "    ERROR: HTTP error 404 while getting http://x/y.whl\n", True, "ERROR: HTTP"),
        (TOOL + "    ERROR: HTTP error 503 while getting http://x/y.whl\n", False, "ERROR: HTTP"),
        (
            TOOL + "    OSError: [Errno 28] No space left on device\n" + NO_PACKAGE,
            False,
            "OSError: [Errno 28]",
        ),
        (
            TOOL + UV_NO_PACKAGE,
            True,
            "error: No solution found when resolving dependencies: Because",
        ),
        (
            TOOL + UV_OLD,
            True,
            "\N{MULTIPLICATION SIGN} No solution found when resolving dependencies:",
        ),
        (TOOL + UV_OFFLINE, False, "error: Request failed after 3 retries in 10.5s: Failed to"),
        (
            CHAIN + "ValueError: Could not find Conda executable at conda.\n",
            True,
            "ValueError: Could",
        ),
        (
            "RuntimeError: Please install virtualenv `python -m pip install virtualenv`to enable\n",
            True,
            "RuntimeError: Please install virtualenv",
        ),
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/mnt/code.zip'\n",
            False,
            "FileNotFoundError: [Errno 2]",
        ),
        (
            "OSError: Failed to download runtime_env file package gcs://_ray_pkg_0.zip\n",
            False,
            "OSError: Failed to download",
        ),
        (
            "Failed to upload working_dir /code to the Ray cluster: Package size (600.00MiB) "
            "exceeds the maximum size of 512.00MiB. To exclude large files, use 'excludes'.\n",
            True,
            "Failed to upload working_dir /code to the Ray cluster",
        ),
    ],
)
def test_setup_text_of_each_tool_is_read(text: str, final: bool, first_line: str) -> None:
    """Also from the reason alone: workers that could not start are told of by that."""
    reason = setup_reason(HEAD + text)
    assert reason.startswith(first_line)
    assert is_final(HEAD + text) is final
    assert is_final(reason) is final
    assert setup_reason(reason) == reason


def test_setup_text_of_a_timeout_names_the_limit() -> None:
    text = (
        "[Node 10.0.0.1] Failed to install runtime_env within the timeout of 600 seconds. Consider "
        "increasing the timeout\nTraceback (most recent call last):\n  ...\nTimeoutError\n"
    )
    assert setup_reason(text).startswith("[Node 10.0.0.1] Failed to install runtime_env within")
    assert not is_final(text)


def test_setup_text_without_known_lines_gives_the_last_one() -> None:
    assert setup_reason("HTTP 500\n\nServer got itself in trouble\n") == (
        "Server got itself in trouble"
    )
    assert setup_reason("") == ""


def test_setup_text_is_cut_in_lines_and_length() -> None:
    many = TOOL + "".join(f"    ERROR: {number} {'x' * 1000}\n" for number in range(100))
    lines = setup_reason(HEAD + many).splitlines()
    assert [line[:9] for line in lines] == [f"ERROR: {number}" for number in range(88, 100)]
    assert {len(line) for line in lines} == {300}


@pytest.mark.parametrize(
    ("said", "rule", "again"),
    [
        (NO_PACKAGE, "ray.runtime_env_final", False),
        (RETRYING + NO_PACKAGE, "ray.runtime_env", True),
    ],
)
def test_runtime_env_is_built_again_only_if_that_can_help(
    said: str, rule: str, again: bool
) -> None:
    error = lookalike("ray.exceptions.RuntimeEnvSetupError", HEAD + TOOL + said)
    fault = Classifier().classify(error)
    assert (fault.kind, fault.phase, fault.rule) == (FaultKind.SETUP, "setup", rule)
    assert is_retriable(error) is again
