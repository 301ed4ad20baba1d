"""The side of a stage that runs in the rank process: the context a rank function gets, and the
program that calls it.

Nothing here may import the driver side: the fork server of a worker imports this module, and a rank
process starts with it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from thornback.executor.folders import is_special, make_folders
from thornback.executor.paths import (
    CONTROL,
    STAGED_DEPTH,
    STAGING,
    check_file_name,
    is_below,
    is_url,
    located,
    staged_name,
    staging_of,
)
from thornback.executor.plainjson import NotJson, check_keys, dumps, said
from thornback.executor.results import MISSING, Results
from thornback.pool import ProgramResult, RankCall

T = TypeVar("T")
MAX_RESULT_BYTES = 64 * 1024
MAX_CHECKPOINT_BYTES = 1024 * 1024
_BYTES, _JSON = b"b", b"j"
"""First byte of a checkpoint: what the rest is."""


class BadResult(TypeError):
    """The rank function returned something that cannot be kept in the journal."""


class BadTarget(ValueError):
    """A final name that nothing can be published under; the next attempt would choose it too."""

    non_retryable = True


class NotLoaded(Exception):
    """What a rank needs is not there, or of another kind, where it should run: a module, a function
    in it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.non_retryable = True
        """Read by the classifier: another try would meet the same."""


_NOT_THERE = (ImportError, AttributeError, SyntaxError, pickle.UnpicklingError, TypeError)
"""What `pickle.loads` raises then. Anything else is what a module raised when it was imported, and
may go away: a disk that does not answer, no memory."""


@attrs.define(slots=True, eq=False)
class RankContext:
    """What a rank knows about itself, and what it may ask for. Made by the rank process.

    Spans that the rank makes with OpenTelemetry belong to the run's trace, if the driver traces
    (`Executor.tracer_provider`). Where the rank process has no tracer provider of its own, and
    `thornback-executor[tracing]` is installed on the worker, they come back with the rank's outcome
    and lie beneath its span (within bounds; those of a rank process that is killed are lost). A
    provider that user code sets, in `setup` or in the rank, exports them itself; then they lie
    beneath the span of the assignment.
    """

    stage: str
    """Its name."""
    rank: int
    """From 0."""
    world_size: int
    """Number of ranks of the stage."""
    attempt: int
    """From 1; for people: a rank can run again without being charged for it."""
    epoch: str
    """(term, assignment): names this try in paths and logs."""
    node: str
    """Name of the node."""
    slot: int
    """Which of the worker's rank processes this is, from 0."""
    node_index: int
    """Position of this node in a gang of several, from 0."""
    nodes: int
    """Nodes of the gang."""
    address: str
    """IP address at which other nodes reach this one; empty: not known."""
    traceparent: str
    """W3C trace context of the assignment; empty: the driver does not trace. While the rank runs it
    is OpenTelemetry's current context, so that instrumented clients pass it on."""
    setup_value: Any
    """What the stage's `setup` returned in this process."""
    _staging: str
    _cwd: str
    _protocols: Collection[str]
    _results: Callable[[str], Results]
    _result: Callable[[str], Any]
    _call: RankCall
    _outputs: list[tuple[str, str]] = attrs.field(factory=list)
    _published: int = 0

    @property
    def staging(self) -> str:
        """A folder (path or URL) that belongs to this try of the rank alone; swept when the run
        ends. Made when it is asked for."""
        if not is_url(self._staging):
            os.makedirs(self._staging, exist_ok=True)
        return self._staging

    @property
    def draining(self) -> float | None:
        """Seconds until this rank's node goes away, as far as is known: `math.inf` if soon but
        without a deadline, 0.0 if at any moment. None: nothing is known of that.

        Cheap: ask as often as you like, and checkpoint when it is not None.
        """
        return self._call.draining()

    @property
    def restored(self) -> Any:
        """What an earlier attempt of this rank saved last with `checkpoint`: bytes, or JSON, read
        anew each time; None: nothing. Kept by the driver, so not over the end of a run."""
        return decode_checkpoint(self._call.restored)

    def checkpoint(self, value: Any) -> None:
        """Save a value for the next attempt of this rank, should this one fail or be lost. Replaces
        what was saved before; gone when the rank is recorded or given up.

        Returns when the worker has it, which sends it on at once, or within the first 2 s of the
        rank. While the node drains, it returns when the driver has it, or after 5 s if that does
        not answer: so save at a drain what the next attempt needs. In a gang of several nodes, that
        of node 0 counts.

        Args:
            value: bytes, or JSON (None, too), of at most 1 MiB.

        Raises:
            TypeError: it is neither.
            ValueError: it is too large.
        """
        self._call.checkpoint(encode_checkpoint(value))

    def progress(self, done: float, total: float | None = None) -> None:
        """Tell how much of this rank is done, of how much: shows in the progress of the run.

        Cheap: more often than once a second is left out. Never fails the rank.
        """
        self._call.progress(float(done), None if total is None else float(total))

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `world_size`-th item, starting with this rank's."""
        return items[self.rank :: self.world_size]

    def results(self, stage: str) -> Results:
        """Return the results of a stage named in `after`: a mapping by rank, of all its ranks, so
        that `.values()` is aligned with its items. A rank without a result has the value `MISSING`.

        Raises:
            KeyError: the stage does not come after that one, or one to one (see `result`).
        """
        return self._results(stage)

    def result(self, stage: str) -> Any:
        """Return the result of the rank of this number of a stage that this one comes one to one
        after (`After(name, kind="one_to_one")`); `MISSING`: it has none, since it failed or was
        skipped.

        Raises:
            KeyError: the stage does not come one to one after that one.
        """
        return self._result(stage)

    @contextlib.contextmanager
    def publish(self, final: str) -> Iterator[str]:
        """Give a path to write to; the driver moves it to `final` once this rank is recorded.

        Exactly the files of the one recorded attempt appear under their final names. A relative
        path counts from the folder in which the driver was started. If the block raises, nothing is
        published. Two ranks of a job cannot publish under one name.

        Args:
            final: a local path (whatever characters it has), or a URL of a protocol that fsspec
                knows. `file://` stands for a local path.

        Raises:
            ValueError: nothing can have this name. Never retried.
            FileNotFoundError: the block ended and nothing was written to the staged path.
            IsADirectoryError: `final` is a folder, or one was made at the staged path.
            PermissionError: the folder of `final` cannot be written to.
        """
        target = self._target(final)
        number, self._published = self._published, self._published + 1
        name = staged_name(number, self.node_index, target)
        staged = posixpath.join(self.staging, name)
        yield staged
        if not is_url(staged):
            _sync(staged, final)
        self._outputs.append((staged, target))

    def _target(self, final: str) -> str:
        """Return where it belongs. A name that cannot be fails here, before the block has run."""
        try:
            target = located(os.fspath(final), self._cwd, self._protocols)
            check_file_name(target)
            _refuse_the_states_own(target, self._staging)
            if not is_url(target):
                _check_target(target)
        except ValueError as error:
            raise BadTarget(f"ctx.publish({final!r}): {error}") from None
        return target


def encode_checkpoint(value: object) -> bytes:
    """Return bytes that tell what they hold, text or bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        data = _BYTES + bytes(value)
    else:
        data = _JSON + _checkpoint_text(value).encode()
    if len(data) > MAX_CHECKPOINT_BYTES:
        raise ValueError(
            f"ctx.checkpoint: {len(data)} bytes, at most {MAX_CHECKPOINT_BYTES} are kept: write "
            "them to a file in ctx.staging, which stays until the run ends, and checkpoint its path"
        )
    return data


def _checkpoint_text(value: object) -> str:
    try:
        text = dumps(value, "value")
        if len(text) < MAX_CHECKPOINT_BYTES:  # more is refused anyway, and takes long to look at
            check_keys(value, "value")
        return text
    except NotJson as error:
        raise TypeError(
            f"ctx.checkpoint: {error}: give lists, dicts, text and numbers, or bytes"
        ) from error


def decode_checkpoint(data: bytes | None) -> Any:
    """Return what was given to `encode_checkpoint`; None for None."""
    if data is None:
        return None
    return data[1:] if data[:1] == _BYTES else json.loads(data[1:])


def _check_target(target: str) -> None:
    """Let a final name that cannot be be this rank's failure, not the journal's."""
    folder = os.path.dirname(target)
    try:
        make_folders(folder)
        is_folder = os.path.isdir(target)
        os.lstat(target)
    except FileNotFoundError:
        is_folder = False
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.ELOOP):
            raise
        raise ValueError(f"its file system does not take that name ({error.strerror})") from error
    if is_folder:
        raise IsADirectoryError(f"ctx.publish({target!r}): that is a folder; name a file")
    if is_special(target):
        raise ValueError("it is not a regular file, but a device, pipe or socket; name a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"ctx.publish({target!r}): {folder!r} cannot be written to")


def _refuse_the_states_own(target: str, staging: str) -> None:
    """Refuse what lies where only the driver writes; `staging` is the folder of this try."""
    state = staging
    for _ in range(STAGED_DEPTH):
        state = posixpath.dirname(state)
    if is_url(state) is not is_url(target):
        return
    if not is_url(state):
        state, target = os.path.realpath(state), os.path.realpath(os.path.dirname(target))
    for own in (CONTROL, STAGING):
        if is_below(target, posixpath.join(state, own)):
            raise ValueError(f"it is in the folder {own!r} of the state, where the run's record is")


def _sync(staged: str, final: str) -> None:
    """Make the bytes durable before the record: else a power loss could publish an empty file."""
    try:
        descriptor = os.open(staged, os.O_RDONLY)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"ctx.publish({final!r}): nothing was written to {staged!r}, the path it gave"
        ) from None
    if os.path.isdir(staged):
        os.close(descriptor)
        raise IsADirectoryError(f"ctx.publish({final!r}): a folder was made; publish its files")
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@attrs.define(slots=True, eq=False)
class StageProgram:
    """Runs the ranks of one stage in a rank process (fulfils `thornback.pool.Program`)."""

    stage: str
    world_size: int
    fn: Callable[..., Any]
    has_items: bool
    setup_fn: Callable[[RankContext], Any] | None
    teardown_fn: Callable[[Any], None] | None
    staging: str
    """URL of the folder for staged outputs of all stages."""
    cwd: str
    """Of the driver: relative final names count from there."""
    parents: Mapping[str, str]
    """Name of a parent stage -> key of the blob with its results."""
    protocols: Collection[str] = ()
    """Of URLs, those that the driver's fsspec knows."""
    own_parents: tuple[str, ...] = ()
    """Parent stages of which a rank is handed the result of the rank of its number."""
    _setup_value: Any = None
    _is_set_up: bool = False
    _loaded: dict[str, bytes] = attrs.field(factory=dict)

    def setup(self, context: RankCall, /) -> None:
        """Call the user's `setup`, once per process."""
        if self.setup_fn is not None:
            self._setup_value = self.setup_fn(self._context(context))
        self._is_set_up = True

    def teardown(self) -> None:
        """Call the user's `teardown`, once per process that was set up and ends in order."""
        if self.teardown_fn is not None and self._is_set_up:
            self._is_set_up = False
            self.teardown_fn(self._setup_value)

    def run(self, context: RankCall, /) -> ProgramResult:
        """Call the user's function and encode what it returned."""
        ctx = self._context(context)
        if self.has_items:
            data = self._handed(context)[0] if self.own_parents else context.args
            try:
                item = pickle.loads(data or b"")
            except _NOT_THERE as error:
                raise _not_loaded(self.stage, f"the item of rank {ctx.rank}", error) from error
            value = self.fn(ctx, item)
        else:
            value = self.fn(ctx)
        return ProgramResult(result=self._encode(value, ctx.rank), outputs=tuple(ctx._outputs))

    def _context(self, call: RankCall) -> RankContext:
        return RankContext(
            stage=self.stage,
            rank=call.rank,
            world_size=self.world_size,
            attempt=call.attempt,
            epoch=call.epoch,
            node=call.node,
            slot=call.slot,
            node_index=call.node_index,
            nodes=call.nodes,
            address=call.address,
            traceparent=call.traceparent,
            setup_value=self._setup_value,
            staging=staging_of(self.staging, self.stage, call.epoch, call.rank),
            cwd=self.cwd,
            protocols=self.protocols,
            results=lambda stage: self._results(stage, call),
            result=lambda stage: self._result(stage, call),
            call=call,
        )

    def _results(self, stage: str, call: RankCall) -> Results:
        if stage in self.own_parents:
            raise KeyError(
                f"ctx.results({stage!r}): stage {self.stage!r} comes one to one after it, and sees "
                f"its own rank only: use ctx.result({stage!r})"
            )
        if stage not in self.parents:
            known = ", ".join(repr(name) for name in self.parents) or "no stage"
            raise KeyError(
                f"ctx.results({stage!r}): stage {self.stage!r} comes after {known}; "
                f"add after={stage!r} to the stage to read its results"
            )
        if stage not in self._loaded:
            self._loaded[stage] = call.inputs(self.parents[stage])
        return Results(self._loaded[stage])

    def _result(self, stage: str, call: RankCall) -> Any:
        if stage not in self.own_parents:
            known = ", ".join(repr(name) for name in self.own_parents) or "no stage"
            mend = f"use ctx.results({stage!r})"
            if stage not in self.parents:
                mend = f"add after=After({stage!r}, kind='one_to_one') to the stage"
            raise KeyError(
                f"ctx.result({stage!r}): stage {self.stage!r} comes one to one after {known}; "
                f"{mend}"
            )
        text = self._handed(call)[1].get(stage)
        return MISSING if text is None else json.loads(text)

    def _handed(self, call: RankCall) -> tuple[bytes, Mapping[str, str]]:
        """Return the pickled item, and the JSON of the rank of this number by stage."""
        item, texts = pickle.loads(call.args or b"")
        return item, texts

    def _encode(self, value: object, rank: int) -> str | None:
        if value is None:
            return None
        try:
            text = dumps(value, "result")
            if len(text) <= MAX_RESULT_BYTES:
                check_keys(value, "result")
        except NotJson as error:
            raise BadResult(
                f"Stage {self.stage!r} rank {rank}: {error}. A rank returns lists, dicts, text and "
                "numbers; for anything else publish a file (ctx.publish) and return its path"
            ) from error
        if len(text) > MAX_RESULT_BYTES:
            raise BadResult(
                f"Stage {self.stage!r} rank {rank} returned {len(text)} bytes of JSON, at most "
                f"{MAX_RESULT_BYTES} are kept: publish a file (ctx.publish) and return its path"
            )
        return text


@attrs.define(slots=True, eq=False)
class SentProgram:
    """A `StageProgram` as it is sent to workers (fulfils `thornback.pool.Program`). It is loaded in
    the set-up, so that a function which cannot be loaded is reported as exactly that."""

    stage: str
    data: bytes = attrs.field(repr=False)
    """Pickled."""
    _program: StageProgram | None = None

    def setup(self, context: RankCall, /) -> None:
        """Load the program and call the user's `setup`, once per process.

        Raises:
            NotLoaded: a module or function is not there.
        """
        try:
            self._program = pickle.loads(self.data)
        except _NOT_THERE as error:
            raise _not_loaded(self.stage, "its function", error) from error
        assert self._program is not None
        self._program.setup(context)

    def teardown(self) -> None:
        """Call the user's `teardown`, once per process that was set up and ends in order."""
        if self._program is not None:
            self._program.teardown()

    def run(self, context: RankCall, /) -> ProgramResult:
        """Call the user's function and encode what it returned."""
        assert self._program is not None, "a rank before its setup"
        return self._program.run(context)


def _not_loaded(stage: str, what: str, error: Exception) -> NotLoaded:
    return NotLoaded(
        f"stage {stage!r}: {what} cannot be loaded on the worker: {said(error)}. Install its "
        "module there, send it along (runtime_env with working_dir, py_modules or pip), or define "
        "it in the script itself"
    )
