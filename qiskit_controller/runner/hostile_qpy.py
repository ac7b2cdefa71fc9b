"""Make a circuit of QPY bytes that the user's code may have forged.

What ``qiskit.qpy.load`` could be made to do, read in Qiskit 2.6.2's sources, and what is done
about it here:

- *Old versions.* Up to version 12 a reader in Python takes over, which parses parameters as
  SymPy text (``qiskit/qpy/binary_io/parse_sympy_repr.py``, an ``eval`` in Qiskit before 2.0) or
  hands bytes to ``symengine.load_basic`` (``qiskit/qpy/common.py``), C++ that makes no promises
  about forged input. The untrusted stage of our own image writes the newest version, so that is
  the only one that is accepted here; it is read by Rust, and its expressions are a list of
  operations that are never text (``crates/qpy/src/params.rs``).
- *Pickle.* Arrays come as ``.npy`` through ``numpy.load``, whose ``allow_pickle`` is False unless
  asked for (``py_deserialize_numpy_object`` in ``crates/qpy/src/py_methods.rs``).
- *Annotations* need a factory that the caller passes; none is passed. Metadata is plain JSON.
- *Classes by name.* An instruction that is not a standard gate names an attribute of
  ``qiskit.circuit.library``, ``qiskit.circuit`` or ``qiskit.circuit.controlflow``, which is then
  called with values from the file (``get_python_gate_class``); a Pauli evolution names one of
  ``qiskit.synthesis.evolution``. That reaches functions, and module methods such as
  ``__setattr__``. While a file is read, those four modules show their classes only.
- *Size.* A few bytes can claim a register of 2^32 bits or an array of 2^40 numbers, and native
  code can crash. A forked process with bounds on memory and time reads every file first; only
  what it survived is read here.

What is left is that Qiskit's constructors run on numbers, strings and arrays of the user's
choice, and that transpiling, as everything else, takes the memory and time of the user's own job.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import resource
import select
import signal
import struct
import sys
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from qiskit_controller.api.qiskitjob import CircuitMetrics
from qiskit_controller.api.run import Reason
from qiskit_controller.runner.hostile import clean
from qiskit_controller.runner.metrics import metrics_of
from qiskit_controller.runner.pod import free_memory, memory_use
from qiskit_controller.runner.rules import BadCircuit, has_measurement

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# Wall time for reading one file. A million gates take about ten seconds.
PROBE_SECONDS = 60.0
# What reading a file may allocate where the container has no limit.
PROBE_BYTES = 4 << 30

# File header of QPY: magic, format version, Qiskit's version, number of circuits, ...
_HEADER = struct.Struct("!6sBBBBQ")

_LOOKED_UP = (
    "qiskit.circuit.library",
    "qiskit.circuit",
    "qiskit.circuit.controlflow",
    "qiskit.synthesis.evolution",
)
# What Python's import system needs of a module.
_IMPORT_ATTRIBUTES = frozenset({"__name__", "__path__", "__spec__", "__file__", "__package__"})


def load_circuit(content: bytes) -> tuple[QuantumCircuit, CircuitMetrics]:
    """The one circuit in `content`, every part of which has been looked at, and its metrics.

    Raises:
        BadCircuit: CircuitInvalid; it is no QPY file, not of the version of this image, holds
            not exactly one circuit, or takes too much to read.
    """
    _check_header(content)
    _probe(content)
    # The probe survived exactly this; what fails now is not of the file's making.
    return _examine(content)


def _unreadable(why: str) -> BadCircuit:
    return BadCircuit(
        Reason.CIRCUIT_INVALID, f"the circuit cannot be read as QPY: {clean(why, 300)}"
    )


def _check_header(content: bytes) -> None:
    from qiskit.qpy import QPY_VERSION

    if len(content) < _HEADER.size:
        raise _unreadable("it has no header")
    magic, version, _, _, _, circuits = _HEADER.unpack_from(content)
    if magic != b"QISKIT":
        raise _unreadable("it has no header")
    if version != QPY_VERSION:
        raise _unreadable(f"it is of version {version}; this image writes {QPY_VERSION}")
    if circuits != 1:
        raise _unreadable(f"it holds {circuits} circuits instead of one")


def _examine(content: bytes) -> tuple[QuantumCircuit, CircuitMetrics]:
    """Read it, and walk through all of it: parts are made, and found broken, when looked at."""
    circuit = _load(content)
    metrics = metrics_of(circuit)
    has_measurement(circuit)
    return circuit, metrics


def _load(content: bytes) -> QuantumCircuit:
    from qiskit import QuantumCircuit, qpy

    with _classes_only():
        (circuit,) = qpy.load(io.BytesIO(content))
    if type(circuit) is not QuantumCircuit:
        raise TypeError(f"a {type(circuit).__name__} is no circuit")
    return circuit


class _ClassesOnly(types.ModuleType):
    """A module that shows its classes and submodules, and none of its functions."""

    def __init__(self, real: types.ModuleType) -> None:
        super().__init__(real.__name__)
        object.__setattr__(self, "_real", real)

    def __getattribute__(self, name: str) -> Any:
        value = getattr(object.__getattribute__(self, "_real"), name)
        if name in _IMPORT_ATTRIBUTES or isinstance(value, types.ModuleType):
            return value
        if name.startswith("__") or (callable(value) and not isinstance(value, type)):
            raise AttributeError(f"{name!r} is not a class")
        return value


@contextlib.contextmanager
def _classes_only() -> Iterator[None]:
    """Put :class:`_ClassesOnly` before the modules in which QPY looks names up."""
    real = {name: importlib.import_module(name) for name in _LOOKED_UP}
    sys.modules.update({name: _ClassesOnly(module) for name, module in real.items()})
    try:
        yield
    finally:
        sys.modules.update(real)


def _probe(content: bytes) -> None:
    """Read `content` in a process that may die of it.

    Raises:
        BadCircuit: it did, or could not read it.
    """
    import qiskit.qpy  # noqa: F401  once, before the fork, and not in the child and again here

    reading, writing = os.pipe()
    # The child touches few of this process's pages; without this, its collector touches all.
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        _probe_child(content, writing)
    os.close(writing)
    try:
        said, ended = _wait(pid, reading)
    finally:
        os.close(reading)
        gc.unfreeze()
    if said == b"ok":
        return
    if said:
        raise _unreadable(said.decode(errors="replace"))
    if ended == -signal.SIGKILL:
        raise _unreadable(f"it takes more than {PROBE_SECONDS:g} s or too much memory to read")
    raise _unreadable(f"the reader crashed (exit code {ended})")


def _probe_child(content: bytes, writing: int) -> NoReturn:
    said = b""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        free = free_memory()
        # RLIMIT_DATA counts what was only reserved, too: allow for what is there already.
        most = memory_use()["VmData"] + (PROBE_BYTES if free is None else free * 9 // 10)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        _examine(content)
        said = b"ok"
    # Rust panics arrive as a BaseException.
    except BaseException as error:
        with contextlib.suppress(BaseException):
            said = f"{type(error).__name__}: {error}".encode(errors="replace")[:2000]
    finally:
        with contextlib.suppress(BaseException):
            os.write(writing, said)
        os._exit(0 if said else 1)


def _wait(pid: int, reading: int) -> tuple[bytes, int]:
    """What the process said, and its exit code (negative for a signal)."""
    deadline = time.monotonic() + PROBE_SECONDS
    said = b""
    # It says one thing, and its end closes the pipe.
    while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(reading, 4096)
        if not chunk:
            break
        said += chunk
    else:
        os.kill(pid, signal.SIGKILL)
        said = b""
    _, status = os.waitpid(pid, 0)
    return said, os.waitstatus_to_exitcode(status)
