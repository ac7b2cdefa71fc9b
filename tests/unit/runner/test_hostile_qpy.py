"""Forged QPY: no file crashes the executor or runs what it should not."""

from __future__ import annotations

import io
import random
import struct
from unittest.mock import patch

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import library
from qiskit.circuit.library import (
    PauliGate,
    PermutationGate,
    UnitaryGate,
)

from qiskit_controller.api.run import Reason
from qiskit_controller.runner import hostile_qpy
from qiskit_controller.runner.hostile_qpy import _classes_only, load_circuit
from qiskit_controller.runner.rules import BadCircuit, has_measurement

from .support import bell, everything, qpy_of


def test_everything_that_users_write_is_read() -> None:
    circuit = everything()
    loaded, metrics = load_circuit(qpy_of(circuit))
    assert loaded.count_ops() == circuit.count_ops()
    assert has_measurement(loaded)
    assert metrics.gates == circuit.size()
    # Two files of one circuit are not the same bytes.
    assert load_circuit(qpy_of(circuit))[1] == metrics


@pytest.mark.parametrize("version", range(13, qpy.QPY_VERSION))
def test_versions_that_the_untrusted_stage_does_not_write(version: int) -> None:
    buffer = io.BytesIO()
    qpy.dump(bell(), buffer, version=version)
    with pytest.raises(BadCircuit, match=f"it is of version {version}") as caught:
        load_circuit(buffer.getvalue())
    assert caught.value.reason == Reason.CIRCUIT_INVALID


def _renamed(old: bytes, new: bytes) -> bytes:
    """A file in which an instruction names something else of the same length."""
    content = qpy_of(_named())
    assert old in content
    assert len(old) == len(new)
    return content.replace(old, new)


def _named() -> QuantumCircuit:
    circuit = QuantumCircuit(3, 1)
    # Both are looked up by name, and their parameters are texts or numbers of the file.
    circuit.append(PauliGate("XYZ"), [0, 1, 2])
    circuit.append(PermutationGate([1, 0, 2]), [0, 1, 2])
    circuit.measure(0, 0)
    return circuit


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"PermutationGate", b"grover_operator"),  # a function
        (b"PermutationGate", b"__setattr_____"[:11] + b"____"),  # nothing at all
        (b"PauliGate", b"templates"),  # a module
        (b"PauliGate", b"QuantumVo"),
    ],
)
def test_names_that_are_no_operation(old: bytes, new: bytes) -> None:
    with pytest.raises(BadCircuit, match="cannot be read as QPY") as caught:
        load_circuit(_renamed(old, new))
    assert caught.value.reason == Reason.CIRCUIT_INVALID


def test_modules_show_their_classes_only() -> None:
    import sys

    with _classes_only():
        shown = sys.modules["qiskit.circuit.library"]
        assert shown.HGate is library.HGate
        for name in ("__setattr__", "__getattribute__", "__dict__", "__loader__", "n_local"):
            assert not hasattr(shown, name)
        # What Qiskit imports meanwhile works.
        from qiskit.circuit.library import HGate
        from qiskit.circuit.library.standard_gates import XGate

        assert (HGate, XGate) == (library.HGate, library.XGate)
    assert sys.modules["qiskit.circuit.library"] is library


def test_a_number_that_claims_to_need_all_memory() -> None:
    content = bytearray(qpy_of(bell()))
    # The circuit's header follows the file's: the number of qubits is somewhere in it.
    at = bytes(content).index(struct.pack("!II", 2, 2))
    content[at : at + 4] = struct.pack("!I", 2**32 - 1)
    with pytest.raises(BadCircuit):
        load_circuit(bytes(content))


def test_an_array_with_objects_in_it() -> None:
    """numpy would unpickle it, were it allowed to."""
    circuit = QuantumCircuit(1, 1)
    circuit.append(UnitaryGate(numpy.eye(2)), [0])
    circuit.measure(0, 0)
    content = qpy_of(circuit)
    assert b"'<c16'" in content
    with pytest.raises(BadCircuit, match="cannot be read as QPY"):
        load_circuit(content.replace(b"'<c16'", b"'|O'  "))


@given(seed=st.integers(0, 2**32), flips=st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_no_damage_breaks_the_reader(seed: int, flips: int) -> None:
    """It is a circuit, or there is a verdict; and this process is still here."""
    content = bytearray(_RICH)
    dice = random.Random(seed)
    for _ in range(flips):
        content[dice.randrange(18, len(content))] = dice.randrange(256)
    verdict = None
    try:
        # Some claims take all the time or memory there is.
        with patch.multiple(hostile_qpy, PROBE_SECONDS=3.0, PROBE_BYTES=256 << 20):
            load_circuit(bytes(content))
    except BadCircuit as error:
        verdict = error
    if verdict is not None:
        assert verdict.reason == Reason.CIRCUIT_INVALID
        assert verdict.message.isprintable()


_RICH = qpy_of(everything())
