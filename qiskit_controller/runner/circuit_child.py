"""The process that runs the user's code, finds the circuit and writes it as QPY.

Started by :mod:`circuit_stage` as a fresh interpreter with an empty environment. It reads a
request from stdin and answers on a pipe, in lines of JSON: :data:`STARTED` before anything of
the user's runs, and at the end :data:`WRITTEN` or ``{"reason": ..., "message": ...}``. The user's
code lives in this same process and can forge the end or keep it from being sent: whoever reads
it must be able to take any.

What is printed, tracebacks included, goes to stdout and stderr, which the parent shows.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import hashlib
import io
import json
import linecache
import os
import re
import resource
import signal
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import attrs

from qiskit_controller.api.run import Reason
from qiskit_controller.runner.rules import BadCircuit, bind, check_measured, listed

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# The parent asks with this signal where the code is; the answer is faulthandler's traceback.
WHERE_SIGNAL = signal.SIGUSR1

STARTED = {"started": True}
WRITTEN = {"written": True}

# Named in the message about an import that failed.
_OFFERED = ("qiskit", "qiskit-aer", "qiskit-ibm-runtime", "numpy", "scipy")
_NAMES = ("qc", "circuit")


@attrs.frozen
class Request:
    """What the parent asks for.

    Attributes:
        file: name of the source, as messages show it.
        path: where it is.
        sha256: what it must hash to.
        parameters: values for the circuit's parameters.
        target: where the circuit goes.
        circuit_bytes: how large it may be there.
        memory_bytes: how much this process may allocate.
        report_fd: the pipe for the answer.
    """

    file: str
    path: str
    sha256: str
    parameters: dict[str, float]
    target: str
    circuit_bytes: int
    memory_bytes: int | None
    report_fd: int


def main() -> NoReturn:
    """Serve one request and end without running anything that the user's code left for later."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the parent's own
    request = Request(**json.loads(sys.stdin.buffer.read()))
    _take_stdin_away()
    _limit(request)
    _answer(request, STARTED)
    shown: Callable[[], None] | None = None
    try:
        _write(_make(request), request)
        answer: Mapping[str, object] = WRITTEN
    except BadCircuit as verdict:
        answer = {"reason": verdict.reason.value, "message": verdict.message}
    except _UserError as error:
        answer = {"reason": error.reason.value, "message": error.message}
        shown = error.show
    # The circuit is the user's too: a property of it, or of any global, can raise anything.
    except BaseException as error:
        failed = _failed(request.file, error)
        answer = {"reason": failed.reason.value, "message": failed.message}
        shown = failed.show
    # Before the traceback, which may be more than the code may print.
    _quietly(lambda: _answer(request, answer))
    if shown is not None:
        _quietly(shown)
    for stream in (sys.stdout, sys.stderr):
        _quietly(functools.partial(_flush, stream))
    # Not sys.exit: the user's atexit handlers, threads and finalizers get no say any more.
    os._exit(0)


def _answer(request: Request, answer: Mapping[str, object]) -> None:
    os.write(request.report_fd, json.dumps(answer).encode() + b"\n")


class _UserError(Exception):
    """The user's code failed; `show` prints its traceback."""

    def __init__(self, reason: Reason, message: str, show: Callable[[], None]) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.show = show


def _quietly(action: Callable[[], object]) -> None:
    """Run what the user's code may have tampered with."""
    # BaseException: a tampered stream may raise SystemExit, and this is the last thing we do.
    with contextlib.suppress(BaseException):
        action()


def _flush(stream: Any) -> None:
    stream.flush()


def _take_stdin_away() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  lives as long as the process


def _limit(request: Request) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Room for the circuit's own verdict; the kernel's answer is EFBIG, an OSError.
    largest = request.circuit_bytes + 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if request.memory_bytes is not None:
        # RLIMIT_DATA and not RLIMIT_AS: reserved address space of threads costs nothing.
        resource.setrlimit(resource.RLIMIT_DATA, (request.memory_bytes, request.memory_bytes))
    # Should the kernel have to choose after all, it is this process and not its parent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    faulthandler.register(WHERE_SIGNAL, file=request.report_fd, all_threads=False, chain=False)


def _make(request: Request) -> QuantumCircuit:
    source = Path(request.path).read_bytes()
    found = hashlib.sha256(source).hexdigest()
    if found != request.sha256:
        raise BadCircuit(
            Reason.SOURCE_HASH_MISMATCH,
            f"{request.file} has SHA-256 {found}, and not {request.sha256} as planned",
        )
    load = {"python": _run_python, "qasm": _load_qasm, "qpy": _load_qpy}[
        format_of(request.file, source)
    ]
    circuit = bind(load(source, request), request.parameters)
    check_measured(circuit)
    return circuit


def format_of(file: str, source: bytes) -> str:
    """``python``, ``qasm`` or ``qpy``: by the file name's ending, else by the content."""
    ending = Path(file).suffix.lower()
    by_ending = {".py": "python", ".qasm": "qasm", ".qpy": "qpy"}.get(ending)
    if by_ending is not None:
        return by_ending
    if source.startswith(b"QISKIT"):
        return "qpy"
    return "qasm" if _qasm_version(source) is not None else "python"


def _qasm_version(source: bytes) -> int | None:
    """The major version in the header, which only blanks and comments may precede."""
    header = re.match(rb"(?:\s|//[^\n]*(?:\n|$)|/\*.*?\*/)*OPENQASM\s+(\d{1,3})", source, re.DOTALL)
    return int(header[1]) if header else None


def _write(circuit: QuantumCircuit, request: Request) -> None:
    from qiskit import qpy

    try:
        buffer = io.BytesIO()
        qpy.dump(circuit, buffer)
        content = buffer.getbuffer()
    except MemoryError:
        raise _out_of_memory(request.file) from None
    # Whatever a subclass of QuantumCircuit does here is the user's.
    except Exception as error:
        raise _UserError(
            Reason.CIRCUIT_INVALID,
            f"{request.file}: the circuit cannot be written as QPY: {_describe(error)}",
            functools.partial(traceback.print_exception, error),
        ) from None
    if len(content) > request.circuit_bytes:
        raise BadCircuit(
            Reason.CIRCUIT_TOO_LARGE,
            f"the circuit has {len(content)} bytes in QPY form; "
            f"{request.circuit_bytes} are allowed",
        )
    # User code may have put a link or a folder there; a new file of our own takes its place.
    temporary = f"{request.target}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    Path(temporary).replace(request.target)


# --- Python -----------------------------------------------------------------------------------


def _run_python(source: bytes, request: Request) -> QuantumCircuit:
    """The code as a script: the module ``__main__``, and what it left in its globals."""
    file = request.file
    module = types.ModuleType("__main__")
    module.__file__ = request.path
    sys.modules["__main__"] = module
    sys.argv = [file]
    # For tracebacks, whose frames carry the name and not the path.
    lines = source.decode(errors="replace").splitlines(keepends=True)
    linecache.cache[file] = (len(source), None, lines, file)

    exited: SystemExit | None = None
    try:
        # dont_inherit: this module's own __future__ imports are not the user's.
        code = compile(source, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise _syntax_error(file, error, lines) from None
    except (MemoryError, RecursionError):
        # The compiler's words for an expression that exceeds its stack.
        raise BadCircuit(
            Reason.CIRCUIT_SYNTAX_ERROR, f"{file}: the code is nested too deeply to be compiled"
        ) from None
    try:
        exec(code, module.__dict__)  # noqa: S102  it is what this process is for
    except SystemExit as error:
        exited = error
    except BaseException as error:
        raise _failed(file, error) from None

    if exited is not None and not _is_success(exited):
        raise _exited(file, exited)
    try:
        return find_circuit(vars(module), file)
    except BadCircuit:
        if exited is not None:
            raise _exited(file, exited) from None
        raise


def find_circuit(names: Mapping[str, Any], file: str) -> QuantumCircuit:
    """``qc``, else ``circuit``, else the only circuit among the module's globals.

    Raises:
        BadCircuit: NoCircuit or AmbiguousCircuit.
    """
    # Qiskit takes half a second to import: code that did without it has made no circuit.
    qiskit = sys.modules.get("qiskit")
    found: dict[int, str] = {}
    if qiskit is not None:
        for name in _NAMES:
            if isinstance(names.get(name), qiskit.QuantumCircuit):
                return names[name]
        for name, value in names.items():
            if isinstance(value, qiskit.QuantumCircuit):
                found.setdefault(id(value), name)
    if len(found) == 1:
        (name,) = found.values()
        return names[name]
    if found:
        raise BadCircuit(
            Reason.AMBIGUOUS_CIRCUIT,
            f"{file} makes several circuits: {listed([str(each) for each in found.values()])}; "
            "name the one to run qc",
        )
    other = next((name for name in _NAMES if name in names), None)
    but = f"; {other} is of type {type(names[other]).__name__}" if other is not None else ""
    raise BadCircuit(
        Reason.NO_CIRCUIT,
        f"{file} makes no circuit: after it ran, there is no QuantumCircuit among its global "
        f"variables{but}; assign the circuit to the variable qc",
    )


def _syntax_error(file: str, error: SyntaxError | ValueError, lines: list[str]) -> _UserError:
    where, text = "", ""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        where = f", line {error.lineno}"
        if 0 < error.lineno <= len(lines):
            text = ": " + lines[error.lineno - 1].strip()
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    return _UserError(
        Reason.CIRCUIT_SYNTAX_ERROR,
        f"{file}{where}: {type(error).__name__}: {what}{text}",
        lambda: traceback.print_exception(error, limit=0),
    )


def _failed(file: str, error: BaseException) -> _UserError:
    """Any exception that left the user's code."""
    reason = Reason.CIRCUIT_EXCEPTION
    advice = ""
    if _is_out_of_memory(error):
        reason = Reason.CIRCUIT_OUT_OF_MEMORY
        advice = "; raise spec.resources.limits.memory or use less"
    elif isinstance(error, ImportError):
        reason = Reason.CIRCUIT_IMPORT_ERROR
        advice = f"; the runner image has {_installed()}"
    return _UserError(
        reason,
        f"{file}{_line(file, error)}: {_describe(error)}{advice}",
        lambda: _show(file, error),
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # A library that cannot be mapped fails its import.
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError | ImportError)
        and re.search("annot allocate memory|failed to map segment", _describe(error)) is not None
    )


def _out_of_memory(file: str) -> BadCircuit:
    return BadCircuit(
        Reason.CIRCUIT_OUT_OF_MEMORY,
        f"{file}: there is not enough memory to write the circuit; "
        "raise spec.resources.limits.memory",
    )


def _is_success(error: SystemExit) -> bool:
    return error.code is None or (isinstance(error.code, int) and error.code == 0)


def _exited(file: str, error: SystemExit) -> BadCircuit:
    code = error.code if isinstance(error.code, int | str) else type(error.code).__name__
    if error.code is None:
        code = 0
    return BadCircuit(
        Reason.CIRCUIT_EXITED,
        f"{file}{_line(file, error)}: the code ended itself with sys.exit: exit code {code}"
        + (", before there was a circuit" if _is_success(error) else ""),
    )


def _line(file: str, error: BaseException) -> str:
    """``, line 7``: where in the user's file it came from."""
    lines = [
        number
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
    ]
    return f", line {lines[-1]}" if lines else ""


def _describe(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # its __str__ is the user's
        return f"{kind} (which cannot be shown)"
    return f"{kind}: {text}" if text else kind


def _show(file: str, error: BaseException) -> None:
    """The traceback from the user's file on, without the frames that started it."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != file:
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames or error.__traceback__)


def _installed() -> str:
    found = []
    for name in _OFFERED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


# --- Other formats ----------------------------------------------------------------------------


def _load_qasm(source: bytes, request: Request) -> QuantumCircuit:
    version = _qasm_version(source)
    try:
        text = source.decode()
    except UnicodeDecodeError as error:
        raise BadCircuit(
            Reason.CIRCUIT_SYNTAX_ERROR, f"{request.file} is not text in UTF-8: {error}"
        ) from None
    if version == 2:
        return _load_qasm2(text, request)
    # The header may be left out in OpenQASM 3, and only there.
    if version in (3, None):
        return _load_qasm3(text, request)
    raise BadCircuit(
        Reason.CIRCUIT_SYNTAX_ERROR,
        f"{request.file} is OpenQASM {version}; OpenQASM 2 and 3 can be read",
    )


def _load_qasm2(text: str, request: Request) -> QuantumCircuit:
    from qiskit import QuantumCircuit, qasm2

    try:
        # Not qasm2.loads, whose strict qelib1.inc lacks gates that Qiskit itself exports.
        return QuantumCircuit.from_qasm_str(text)
    except qasm2.QASM2ParseError as error:
        raise BadCircuit(
            Reason.CIRCUIT_SYNTAX_ERROR, _qasm_message(request.file, error.message)
        ) from None


def _load_qasm3(text: str, request: Request) -> QuantumCircuit:
    from qiskit import qasm3
    from qiskit.exceptions import MissingOptionalLibraryError

    # The parser prints what is wrong and raises an exception without a word.
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            return qasm3.loads(text)
    except MissingOptionalLibraryError:
        raise BadCircuit(
            Reason.CIRCUIT_IMPORT_ERROR,
            f"{request.file} is OpenQASM 3, which the runner image cannot read: "
            "it lacks the package qiskit-qasm3-import",
        ) from None
    except MemoryError:
        raise _out_of_memory(request.file) from None
    # The parser's own exceptions are of another package, and of several kinds.
    except Exception as error:
        said = str(error) or told.getvalue().partition("\n")[0] or type(error).__name__
        raise BadCircuit(Reason.CIRCUIT_SYNTAX_ERROR, _qasm_message(request.file, said)) from None


def _qasm_message(file: str, message: str) -> str:
    """``circuit.qasm, line 3: what``, from the forms in which the parsers put it.

    These are ``<input>:3,5: what``, ``3,5: what`` and ``line 3:5 what``.
    """
    message = message.strip("\"'")
    found = re.match(r"(?:<input>:|line )?(\d+)[,:]\s?\d+:? (.*)", message, re.DOTALL)
    return f"{file}, line {found[1]}: {found[2]}" if found else f"{file}: {message}"


def _load_qpy(source: bytes, request: Request) -> QuantumCircuit:
    from qiskit import qpy

    try:
        circuits = qpy.load(io.BytesIO(source))
    except MemoryError:
        raise _out_of_memory(request.file) from None
    # A broken file raises anything, from struct.error to AttributeError.
    except Exception as error:
        raise BadCircuit(
            Reason.CIRCUIT_INVALID, f"{request.file} cannot be read as QPY: {_describe(error)}"
        ) from None
    if len(circuits) != 1:
        raise BadCircuit(
            Reason.AMBIGUOUS_CIRCUIT if circuits else Reason.NO_CIRCUIT,
            f"{request.file} holds {len(circuits)} circuits; exactly one can be run",
        )
    return circuits[0]
