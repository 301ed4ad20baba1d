"""Which exceptions Python's own modules define, and how they derive: data, for where only a name is
known. Nothing is ever imported because a text names it. Pure."""

from __future__ import annotations

import builtins
from collections.abc import Mapping

BUILTIN_MROS: Mapping[str, tuple[str, ...]] = {
    name: tuple(f"builtins.{c.__qualname__}" for c in cls.__mro__ if c is not object)
    for name, cls in vars(builtins).items()
    if isinstance(cls, type) and issubclass(cls, BaseException)
}
"""Built-in exceptions by name, also by old ones such as `IOError`."""

PYTHON_BASES: Mapping[str, tuple[str, ...]] = {
    "asyncio.exceptions.BrokenBarrierError": ("RuntimeError",),
    "asyncio.exceptions.CancelledError": ("BaseException",),
    "asyncio.exceptions.IncompleteReadError": ("EOFError",),
    "asyncio.exceptions.SendfileNotAvailableError": ("RuntimeError",),
    "binascii.Error": ("ValueError",),
    "concurrent.futures._base.BrokenExecutor": ("RuntimeError",),
    "concurrent.futures._base.CancelledError": ("concurrent.futures._base.Error",),
    "concurrent.futures._base.InvalidStateError": ("concurrent.futures._base.Error",),
    "concurrent.futures.process.BrokenProcessPool": ("concurrent.futures._base.BrokenExecutor",),
    "concurrent.futures.thread.BrokenThreadPool": ("concurrent.futures._base.BrokenExecutor",),
    "dataclasses.FrozenInstanceError": ("AttributeError",),
    "decimal.DecimalException": ("ArithmeticError",),
    "decimal.InvalidOperation": ("decimal.DecimalException",),
    "graphlib.CycleError": ("ValueError",),
    "gzip.BadGzipFile": ("OSError",),
    "http.client.BadStatusLine": ("http.client.HTTPException",),
    "http.client.ImproperConnectionState": ("http.client.HTTPException",),
    "http.client.CannotSendHeader": ("http.client.ImproperConnectionState",),
    "http.client.CannotSendRequest": ("http.client.ImproperConnectionState",),
    "http.client.IncompleteRead": ("http.client.HTTPException",),
    "http.client.InvalidURL": ("http.client.HTTPException",),
    "http.client.LineTooLong": ("http.client.HTTPException",),
    "http.client.NotConnected": ("http.client.HTTPException",),
    "http.client.RemoteDisconnected": ("ConnectionResetError", "http.client.BadStatusLine"),
    "http.client.ResponseNotReady": ("http.client.ImproperConnectionState",),
    "importlib.metadata.PackageNotFoundError": ("ModuleNotFoundError",),
    "io.UnsupportedOperation": ("OSError", "ValueError"),
    "ipaddress.AddressValueError": ("ValueError",),
    "json.decoder.JSONDecodeError": ("ValueError",),
    "multiprocessing.context.AuthenticationError": ("multiprocessing.context.ProcessError",),
    "multiprocessing.context.TimeoutError": ("multiprocessing.context.ProcessError",),
    "_pickle.PicklingError": ("_pickle.PickleError",),
    "_pickle.UnpicklingError": ("_pickle.PickleError",),
    "shutil.Error": ("OSError",),
    "shutil.ExecError": ("OSError",),
    "shutil.ReadError": ("OSError",),
    "shutil.SameFileError": ("shutil.Error",),
    "shutil.SpecialFileError": ("OSError",),
    "smtplib.SMTPException": ("OSError",),
    "smtplib.SMTPServerDisconnected": ("smtplib.SMTPException",),
    "socket.gaierror": ("OSError",),
    "socket.herror": ("OSError",),
    "sqlite3.DatabaseError": ("sqlite3.Error",),
    "sqlite3.DataError": ("sqlite3.DatabaseError",),
    "sqlite3.IntegrityError": ("sqlite3.DatabaseError",),
    "sqlite3.InterfaceError": ("sqlite3.Error",),
    "sqlite3.InternalError": ("sqlite3.DatabaseError",),
    "sqlite3.NotSupportedError": ("sqlite3.DatabaseError",),
    "sqlite3.OperationalError": ("sqlite3.DatabaseError",),
    "sqlite3.ProgrammingError": ("sqlite3.DatabaseError",),
    "ssl.SSLError": ("OSError",),
    "ssl.SSLCertVerificationError": ("ssl.SSLError", "ValueError"),
    "ssl.SSLEOFError": ("ssl.SSLError",),
    "ssl.SSLSyscallError": ("ssl.SSLError",),
    "ssl.SSLWantReadError": ("ssl.SSLError",),
    "ssl.SSLWantWriteError": ("ssl.SSLError",),
    "ssl.SSLZeroReturnError": ("ssl.SSLError",),
    "statistics.StatisticsError": ("ValueError",),
    "subprocess.CalledProcessError": ("subprocess.SubprocessError",),
    "subprocess.TimeoutExpired": ("subprocess.SubprocessError",),
    "tarfile.CompressionError": ("tarfile.TarError",),
    "tarfile.ExtractError": ("tarfile.TarError",),
    "tarfile.HeaderError": ("tarfile.TarError",),
    "tarfile.ReadError": ("tarfile.TarError",),
    "tarfile.StreamError": ("tarfile.TarError",),
    "threading.BrokenBarrierError": ("RuntimeError",),
    "tomllib.TOMLDecodeError": ("ValueError",),
    "urllib.error.ContentTooShortError": ("urllib.error.URLError",),
    "urllib.error.HTTPError": ("urllib.error.URLError",),
    "urllib.error.URLError": ("OSError",),
    "xml.etree.ElementTree.ParseError": ("SyntaxError",),
    "zipimport.ZipImportError": ("ImportError",),
}
"""Direct bases of exceptions of the standard library, as in Python 3.11 to 3.13; without those
derived from `Exception` alone."""
