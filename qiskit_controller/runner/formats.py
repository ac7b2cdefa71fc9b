"""The result document as bytes: json, csv, qpy or pickle.

Pure functions of the document; the same result gives the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle  # only to write
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from qiskit_controller.api.qiskitjob import OutputFormat
from qiskit_controller.runner.results import Document

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# Named and not "highest", so that the bytes do not depend on the Python that writes them;
# readable by every Python 3 since 3.4.
PICKLE_PROTOCOL = 4


@attrs.frozen
class Formatted:
    """A result ready to be stored.

    Attributes:
        file: its usual name, ``results.<format>``.
        content: the bytes.
        text: whether they are UTF-8 text.
        media_type: for stores that keep one.
    """

    file: str
    content: bytes
    text: bool
    media_type: str

    @property
    def sha256(self) -> str:
        """Of the bytes, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


@attrs.frozen
class Run:
    """What a format may draw from.

    Attributes:
        document: the result document.
        circuit: the circuit as the user wrote it.
        transpiled: the circuit that executed.
    """

    document: Document
    circuit: QuantumCircuit
    transpiled: QuantumCircuit


def write(run: Run, output_format: OutputFormat) -> Formatted:
    """The result in one of the formats of ``spec.output.format``."""
    return _FORMATS[output_format](run)


def counts_json(document: Document) -> str:
    """The counts alone, in one line."""
    return json.dumps(document["counts"], separators=(",", ":"), sort_keys=True)


def _json(run: Run) -> Formatted:
    text = json.dumps(run.document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    return Formatted("results.json", text.encode(), text=True, media_type="application/json")


def _csv(run: Run) -> Formatted:
    """Columns ``bitstring,count,probability``; a probability is count / shots, unrounded."""
    counts: Mapping[str, int] = run.document["counts"]
    shots = run.document["shots"]
    buffer = io.StringIO(newline="")
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(("bitstring", "count", "probability"))
    for outcome, count in sorted(counts.items()):
        rows.writerow((outcome, count, count / shots))
    return Formatted("results.csv", buffer.getvalue().encode(), text=True, media_type="text/csv")


def _qpy(run: Run) -> Formatted:
    """Two circuits: the user's and the transpiled one.

    The metadata of each is the circuit's own, and beside it ``counts`` and ``result``, the
    rest of the result document.
    """
    from qiskit import qpy

    added = {
        "counts": run.document["counts"],
        "result": {key: value for key, value in run.document.items() if key != "counts"},
    }
    circuits = []
    for circuit in (run.circuit, run.transpiled):
        kept = circuit.copy()
        kept.metadata = {**(circuit.metadata or {}), **added}
        circuits.append(kept)
    buffer = io.BytesIO()
    qpy.dump(circuits, buffer)
    return Formatted(
        "results.qpy", buffer.getvalue(), text=False, media_type="application/octet-stream"
    )


def _pickle(run: Run) -> Formatted:
    """The result document as a dict of dicts, lists, strings and numbers: nothing to import."""
    # Through JSON: whatever Mapping or str subclass came in is a builtin after it, and equal
    # strings are no longer the same object by chance, which a pickle would show.
    plain = json.loads(json.dumps(run.document, sort_keys=True))
    content = pickle.dumps(plain, protocol=PICKLE_PROTOCOL)
    return Formatted("results.pickle", content, text=False, media_type="application/octet-stream")


_FORMATS: Mapping[OutputFormat, Callable[[Run], Formatted]] = {
    "json": _json,
    "csv": _csv,
    "qpy": _qpy,
    "pickle": _pickle,
}
