"""The command `thornback`.

Exit codes: 0 fine, 1 it ran and failed, 2 wrong use, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from thornback.cli.demo.run import DemoOptions

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
EXTRAS = {"ray": "ray", "datatrove": "datatrove", "opentelemetry-exporter-otlp-proto-http": "otlp"}
"""What an extra installs, and its name."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Armoured execution on Ray: data jobs whose machines come and go."""


@main.command()
def version() -> None:
    """Print the versions of thornback, Python and what the extras install."""
    for name in ("thornback", "thornback-executor", *EXTRAS):
        try:
            click.echo(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            mend = f": pip install 'thornback[{EXTRAS[name]}]'" if name in EXTRAS else ""
            click.echo(f"{name} not installed{mend}")
    click.echo(f"python {platform.python_version()}")


@main.command()
@click.option(
    "--backend",
    type=click.Choice(["ray", "local"]),
    default="ray",
    show_default=True,
    help="Where to run: ray takes RAY_ADDRESS or starts a small Ray; local needs no Ray.",
)
@click.option("--no-chaos", is_flag=True, help="Kill nothing.")
@click.option("--fresh", is_flag=True, help="Remove what earlier runs recorded.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".thornback/demo"),
    show_default=True,
    help="Folder for journal, parts and traces.",
)
@click.option(
    "--cpus",
    type=click.IntRange(min=1, max=1024),
    default=4,
    show_default=True,
    help="Logical CPUs of a Ray started here or of the local backend; most workers at a time.",
)
def demo(
    backend: Literal["ray", "local"], no_chaos: bool, fresh: bool, state: Path, cpus: int
) -> None:
    """Index this Python's standard library while processes of the job are being killed.

    The result is compared with that of a single process. A second run on the same state does only
    what is not recorded yet.
    """
    # Here, not above: `version` and `--help` answer at once and without a backend.
    from thornback.cli.demo.run import DemoOptions

    options = DemoOptions(backend=backend, chaos=not no_chaos, fresh=fresh, state=state, cpus=cpus)
    sys.exit(_demo(options))


def _demo(options: DemoOptions) -> int:
    """Run the demo; turn what it raises into a message with a mend, and an exit code."""
    from thornback.cli.demo.corpus import NoCorpusError
    from thornback.cli.demo.run import run_demo
    from thornback.cli.display import standard_console
    from thornback.cli.state_folder import NotAState
    from thornback.executor import (
        HeldByAnother,
        IdentityMismatch,
        JournalError,
        RunCancelled,
        RunFailed,
        UsageError,
    )

    try:
        return 0 if run_demo(options, standard_console(), _warn) else FAILED
    except IdentityMismatch as error:
        wrong = "".join(f"\n  {difference}" for difference in error.differences)
        mend = "\nGive --fresh to remove it, or another --state."
        return _say(f"{options.state} holds the record of another job:{wrong}{mend}", WRONG_USE)
    except (HeldByAnother, NoCorpusError, NotAState, UsageError) as error:
        return _say(str(error), WRONG_USE)
    except ConnectionError as error:
        mend = "unset RAY_ADDRESS to start a Ray here, or use --backend local"
        return _say(f"cannot reach Ray ({error}): {mend}", WRONG_USE)
    except RunFailed as failed:
        return _say(failed.text, FAILED)
    except JournalError as error:
        return _say(str(error), FAILED)
    except (KeyboardInterrupt, RunCancelled) as error:
        stays = f"what is recorded stays in {options.state}"
        ended = error.code if isinstance(error, SystemExit) else None
        code = ended if isinstance(ended, int) else INTERRUPTED
        return _say(f"interrupted; {stays}, and the same command goes on from there", code)


def _say(text: str, code: int) -> int:
    _warn(text)
    return code


def _warn(text: str) -> None:
    click.echo(f"thornback demo: {text}", err=True)


if __name__ == "__main__":
    main(prog_name="thornback")
