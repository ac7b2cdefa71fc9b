"""The untrusted stage, run as the container runs it, against code that is wrong or hostile."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from qiskit import qpy

from qiskit_controller.api.run import Limits, Reason

from .support import BELL, Pod, Ran, run_together


def test_a_circuit_is_written_and_what_was_printed_is_kept(pod: Pod) -> None:
    pod.plan(BELL + "print('hello')\n")
    ran = pod.circuit()
    outcome = pod.outcome()
    assert (ran.code, outcome.reason, outcome.printed) == (0, None, "hello\n")
    assert ran.printed == "hello\n"
    with (pod.paths.work / "circuit.qpy").open("rb") as file:
        (circuit,) = qpy.load(file)
    assert circuit.count_ops() == {"h": 1, "cx": 1, "measure": 2}
    assert sorted(each.name for each in pod.paths.work.iterdir()) == ["circuit.qpy", "outcome.json"]


# What the user wrote, the reason, and a part of the message: that which lets them mend it.
BAD: dict[str, tuple[str, Reason, str]] = {
    "syntax error": (
        "from qiskit import QuantumCircuit\n\nqc = QuantumCircuit(2,\n",
        Reason.CIRCUIT_SYNTAX_ERROR,
        "circuit.py, line 3: SyntaxError: '(' was never closed: qc = QuantumCircuit(2,",
    ),
    "indentation": ("if True:\npass\n", Reason.CIRCUIT_SYNTAX_ERROR, "circuit.py, line 2: Indent"),
    "null byte": ("qc = 1\0\n", Reason.CIRCUIT_SYNTAX_ERROR, "circuit.py"),
    "nested too deeply": ("x = " + "-" * 100_000 + "1", Reason.CIRCUIT_SYNTAX_ERROR, "too deeply"),
    "import error": (
        "import qiskit\nimport foo.bar\n",
        Reason.CIRCUIT_IMPORT_ERROR,
        "circuit.py, line 2: ModuleNotFoundError: No module named 'foo'; the runner image has "
        "qiskit 2",
    ),
    "name that is not in qiskit": (
        "from qiskit import execute\n",
        Reason.CIRCUIT_IMPORT_ERROR,
        "circuit.py, line 1: ImportError: cannot import name 'execute'",
    ),
    "exception": (
        "def f(x):\n    return 1 / x\n\nf(0)\n",
        Reason.CIRCUIT_EXCEPTION,
        "circuit.py, line 2: ZeroDivisionError: division by zero",
    ),
    "exception inside qiskit": (
        "from qiskit import QuantumCircuit\nqc = QuantumCircuit(2)\nqc.h(7)\n",
        Reason.CIRCUIT_EXCEPTION,
        "circuit.py, line 3: CircuitError: 'Index 7 out of range",
    ),
    "recursion": (
        "def f():\n    f()\nf()\n",
        Reason.CIRCUIT_EXCEPTION,
        "line 2: RecursionError",
    ),
    "exception that cannot be shown": (
        "class E(Exception):\n    def __str__(self):\n        raise SystemExit(3)\nraise E\n",
        Reason.CIRCUIT_EXCEPTION,
        "circuit.py, line 4: E (which cannot be shown)",
    ),
    "base exception": (
        "raise KeyboardInterrupt\n",
        Reason.CIRCUIT_EXCEPTION,
        "circuit.py, line 1: KeyboardInterrupt",
    ),
    "no input": ("input()\n", Reason.CIRCUIT_EXCEPTION, "line 1: EOFError"),
    "no circuit": ("x = 1\n", Reason.NO_CIRCUIT, "assign the circuit to the variable qc"),
    "no code": ("", Reason.NO_CIRCUIT, "circuit.py makes no circuit"),
    "no circuit but a list of them": (
        "from qiskit import QuantumCircuit\nqc = [QuantumCircuit(1)]\n",
        Reason.NO_CIRCUIT,
        "qc is of type list",
    ),
    "two circuits": (
        "from qiskit import QuantumCircuit\na = QuantumCircuit(1)\nb = QuantumCircuit(2)\n",
        Reason.AMBIGUOUS_CIRCUIT,
        "circuit.py makes several circuits: a, b; name the one to run qc",
    ),
    "no measurement": (
        "from qiskit import QuantumCircuit\nqc = QuantumCircuit(1)\nqc.h(0)\n",
        Reason.NO_MEASUREMENT,
        "call measure_all()",
    ),
    "os._exit": (
        BELL + "import os\nos._exit(0)\n",
        Reason.CIRCUIT_EXITED,
        "ended its process with exit code 0",
    ),
    "sys.exit": (
        "import sys\nsys.exit()\n" + BELL,
        Reason.CIRCUIT_EXITED,
        "circuit.py, line 2: the code ended itself with sys.exit: exit code 0, before there was",
    ),
    "sys.exit with a failure": (
        BELL + "import sys\nsys.exit('no luck')\n",
        Reason.CIRCUIT_EXITED,
        "line 7: the code ended itself with sys.exit: exit code no luck",
    ),
    "sys.exit with an object": (
        "class C:\n    def __eq__(self, other):\n        1/0\nraise SystemExit(C())\n",
        Reason.CIRCUIT_EXITED,
        "line 4",
    ),
    "killed": (
        "import os\nos.kill(os.getpid(), 9)\n",
        Reason.CIRCUIT_EXITED,
        "ended by the signal SIGKILL",
    ),
    "crashed": (
        "import ctypes\nctypes.string_at(0)\n",
        Reason.CIRCUIT_EXITED,
        "ended by the signal SIGSEGV",
    ),
    "a subclass that will not be written": (
        "from qiskit import QuantumCircuit\n"
        "class Mine(QuantumCircuit):\n"
        "    @property\n"
        "    def parameters(self):\n"
        "        raise SystemExit(0)\n"
        "qc = Mine(1, 1)\n",
        Reason.CIRCUIT_EXCEPTION,
        "circuit.py, line 5: SystemExit",
    ),
    "an object that says it is a circuit": (
        "from qiskit import QuantumCircuit\n"
        "class Liar:\n"
        "    __class__ = QuantumCircuit\n"
        "qc = Liar()\n",
        Reason.CIRCUIT_EXCEPTION,
        "circuit.py: AttributeError",
    ),
    "an object whose class raises": (
        "import qiskit\n"
        "class Evil:\n"
        "    @property\n"
        "    def __class__(self):\n"
        "        raise BaseException('boo')\n"
        "qc = Evil()\n",
        Reason.CIRCUIT_EXCEPTION,
        "circuit.py, line 5: BaseException: boo",
    ),
    "a gate that cannot be written": (
        "from qiskit import QuantumCircuit\n"
        "qc = QuantumCircuit(1, 1, metadata={'x': object()})\n"
        "qc.measure(0, 0)\n",
        Reason.CIRCUIT_INVALID,
        "the circuit cannot be written as QPY: TypeError",
    ),
    "unbound parameters": (
        "from qiskit import QuantumCircuit\n"
        "from qiskit.circuit import Parameter, ParameterVector\n"
        "qc = QuantumCircuit(1)\n"
        "qc.rx(Parameter('phi'), 0)\n"
        "qc.rx(ParameterVector('theta', 2)[1], 0)\n"
        "qc.measure_all()\n",
        Reason.UNBOUND_PARAMETERS,
        "have no value: phi, theta[1]; give each a number in spec.circuit.parameters",
    ),
    "input variables": (
        "from qiskit import QuantumCircuit\n"
        "from qiskit.circuit.classical import types\n"
        "qc = QuantumCircuit(1)\n"
        "qc.add_input('x', types.Bool())\n"
        "qc.measure_all()\n",
        Reason.UNBOUND_PARAMETERS,
        "input variables have no value: x",
    ),
    "nothing left of the pipes": (
        BELL + "import os\nos.closerange(0, 100)\nos._exit(3)\n",
        Reason.CIRCUIT_EXITED,
        "exit code 3",
    ),
}


@pytest.fixture(scope="module")
def bad(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Pod, Ran]]:
    test = "test_bad_code_ends_with_a_verdict_that_names_the_place"
    return run_together(request, tmp_path_factory, test, lambda pod, what: pod.plan(BAD[what][0]))


@pytest.mark.parametrize("what", BAD)
def test_bad_code_ends_with_a_verdict_that_names_the_place(
    bad: Mapping[str, tuple[Pod, Ran]], what: str
) -> None:
    _, reason, part = BAD[what]
    pod, ran = bad[what]
    outcome = pod.outcome()
    assert ran.code == 0
    assert outcome.reason == reason, outcome.message
    assert part in outcome.message
    # What the executor's log and kubectl describe show is one line.
    assert "\n" not in outcome.message


def test_the_traceback_in_the_log_begins_in_the_users_code(pod: Pod) -> None:
    pod.plan("def f():\n    raise ValueError('x')\nf()\n")
    printed = pod.circuit().printed
    assert printed.startswith(
        'Traceback (most recent call last):\n  File "circuit.py", line 3, in <module>\n    f()\n'
    )
    assert "raise ValueError('x')\nValueError: x\n" in printed
    assert "circuit_child" not in printed


GOOD = {
    "the name circuit": "from qiskit import QuantumCircuit\nother = QuantumCircuit(1)\n"
    "circuit = QuantumCircuit(1)\ncircuit.measure_all()\n",
    "qc before circuit": "from qiskit import QuantumCircuit\ncircuit = QuantumCircuit(1)\n"
    "qc = QuantumCircuit(1)\nqc.measure_all()\n",
    "the only one": "from qiskit import QuantumCircuit\nbell = QuantumCircuit(1)\n"
    "bell.measure_all()\nalias = bell\n",
    "the only one beside a qc that is none": "from qiskit import QuantumCircuit\nqc = None\n"
    "bell = QuantumCircuit(1)\nbell.measure_all()\n",
    "a script": BELL + "import sys\nif __name__ == '__main__':\n    qc.barrier()\n    sys.exit()\n",
    "a module that others look up": "import pickle, dataclasses\n@dataclasses.dataclass\n"
    "class P:\n    x: 'int' = 1\nassert pickle.loads(pickle.dumps(P())) == P()\n" + BELL,
    "a future import": "from __future__ import annotations\n" + BELL,
    "an encoding": "# -*- coding: latin-1 -*-\n" + BELL,
    "a subclass": "from qiskit import QuantumCircuit\nclass C(QuantumCircuit):\n    pass\n"
    "qc = C(1)\nqc.measure_all()\n",
    "a library circuit": "from qiskit.circuit.library import quantum_volume\n"
    "qc = quantum_volume(3, seed=1)\nqc.measure_all()\n",
    "a thread left running": BELL + "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(100,)).start()\n",
    "handlers left for the end": BELL + "import atexit, os\natexit.register(os._exit, 7)\n",
    "stdout closed": BELL + "import sys, os\nsys.stdout.close()\nos.close(1)\n",
    "stdout broken": BELL + "import sys\nsys.stdout = sys.stderr = object()\n",
    "a warning": BELL + "import warnings\nwarnings.warn('hm')\n",
    "measured in a block": "from qiskit import QuantumCircuit\nqc = QuantumCircuit(2, 2)\n"
    "with qc.for_loop(range(2)):\n    qc.measure(0, 0)\n",
    "measured in a part": "from qiskit import QuantumCircuit\npart = QuantumCircuit(1, 1)\n"
    "part.measure(0, 0)\nqc = QuantumCircuit(1, 1)\nqc.append(part.to_instruction(), [0], [0])\n",
    # Ended so, the pod would count as lost, and the next attempt would be free.
    "a signal that tells the stage to stop": "import os, time\nos.kill(os.getppid(), 15)\n"
    "time.sleep(0.3)\n" + BELL,
    "names that are no names": BELL + "globals()[1] = qc\n",
}


@pytest.fixture(scope="module")
def good(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Pod, Ran]]:
    test = "test_good_code_leaves_a_circuit"
    return run_together(request, tmp_path_factory, test, lambda pod, what: pod.plan(GOOD[what]))


@pytest.mark.parametrize("what", GOOD)
def test_good_code_leaves_a_circuit(good: Mapping[str, tuple[Pod, Ran]], what: str) -> None:
    pod, ran = good[what]
    assert (ran.code, pod.outcome().reason) == (0, None), ran.printed + pod.outcome().message
    assert (pod.paths.work / "circuit.qpy").is_file()


def test_a_loop_without_end_is_stopped_and_its_line_named(pod: Pod) -> None:
    pod.plan("x = 0\nwhile True:\n    x += 1\n", limits=Limits(circuit_seconds=2.0))
    begun = time.monotonic()
    assert pod.circuit().code == 0
    assert time.monotonic() - begun < 10
    outcome = pod.outcome()
    assert outcome.reason == Reason.CIRCUIT_TIMEOUT
    assert re.match(
        r"circuit\.py, line [23]: the code was still running after 2 s", outcome.message
    )


def test_one_that_ignores_signals_and_closes_its_pipes_is_stopped_too(pod: Pod) -> None:
    code = (
        "import os, signal, time\n"
        "for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(s, signal.SIG_IGN)\n"
        "os.closerange(0, 100)\n"
        "while True:\n    time.sleep(1)\n"
    )
    pod.plan(code, limits=Limits(circuit_seconds=2.0))
    assert pod.circuit().code == 0
    assert pod.outcome().reason == Reason.CIRCUIT_TIMEOUT


def test_too_much_output_is_cut_and_its_line_named(pod: Pod) -> None:
    pod.plan("while True:\n    print('x' * 1000)\n", limits=Limits(printed_bytes=100_000))
    ran = pod.circuit()
    outcome = pod.outcome()
    assert outcome.reason == Reason.CIRCUIT_OUTPUT_TOO_LARGE
    assert outcome.message == "circuit.py, line 2: the code printed more than 100000 bytes"
    assert 100_000 <= len(ran.printed) < 101_000
    assert len(outcome.printed) == 2048


def test_ten_megabytes_of_prints_stop_at_the_default(pod: Pod) -> None:
    pod.plan("for _ in range(10_000):\n    print('x' * 1000)\n" + BELL)
    ran = pod.circuit()
    assert pod.outcome().reason == Reason.CIRCUIT_OUTPUT_TOO_LARGE
    assert len(ran.printed) < 1_001_000


MEMORY = {
    "in python": "x = []\nwhile True:\n    x.append(b'x' * (1 << 26))\n",
    "in numpy": "import numpy\nx = numpy.ones(1 << 28)\n",
    "in rust": "from qiskit import QuantumCircuit\nqc = QuantumCircuit(1 << 28)\n",
}


@pytest.mark.parametrize("what", MEMORY)
def test_two_gibibytes_of_memory(pod: Pod, what: str) -> None:
    pod.plan(MEMORY[what])
    assert pod.circuit(QUANTUM_TEST_MEMORY=str(512 << 20)).code == 0
    outcome = pod.outcome()
    assert outcome.reason == Reason.CIRCUIT_OUT_OF_MEMORY, outcome
    assert "spec.resources.limits.memory" in outcome.message
    assert what == "in rust" or "circuit.py, line" in outcome.message


def test_memory_for_qiskit_is_left_where_there_is_little(pod: Pod) -> None:
    pod.plan(BELL)
    assert pod.circuit(QUANTUM_TEST_MEMORY=str(256 << 20)).code == 0
    assert pod.outcome().reason is None


def test_a_circuit_that_is_too_large(pod: Pod) -> None:
    code = "from qiskit import QuantumCircuit\nqc = QuantumCircuit(1)\n"
    code += "for _ in range(5000):\n    qc.rx(0.1, 0)\nqc.measure_all()\n"
    pod.plan(code, limits=Limits(circuit_bytes=100_000))
    pod.circuit()
    outcome = pod.outcome()
    assert outcome.reason == Reason.CIRCUIT_TOO_LARGE
    assert "100000 are allowed" in outcome.message


def _alive(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_no_process_that_the_code_started_outlives_the_stage(pod: Pod, tmp_path: Path) -> None:
    marker = f"marker-{os.getpid()}-{tmp_path.name}"
    code = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, '-c', 'import time; time.sleep(100)', '{marker}']\n"
        # In a session of its own, and an orphan.
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    subprocess.Popen(command, start_new_session=True)\n"
        "    os._exit(0)\n"
        "for _ in range(20):\n"
        "    subprocess.Popen(command)\n"
    )
    pod.plan(code + BELL)
    ran = pod.circuit()
    assert (ran.code, pod.outcome().reason) == (0, None)
    assert _alive(marker) == []


def test_a_fork_of_the_code_that_goes_on_printing_ends_with_it(pod: Pod) -> None:
    code = "import os\nif os.fork() == 0:\n    while True:\n        print('x')\n" + BELL
    pod.plan(code, limits=Limits(circuit_seconds=20))
    begun = time.monotonic()
    assert pod.circuit().code == 0
    assert time.monotonic() - begun < 15


# Each leaves something else where the circuit or the outcome belongs, and never a verdict.
LEFT = {
    "a link": "os.symlink('/etc/passwd', target)",
    "a pipe": "os.mkfifo(target)",
    "a folder": "os.makedirs(target + '/x/y'); os.chmod(target, 0)",
    "a huge file": "open(target, 'wb').truncate(64_000_001)",
    "nothing": "",
}


def _leave(pod: Pod, what: str) -> None:
    code = "import os\n"
    for name in ("circuit.qpy", "outcome.json"):
        code += f"target = {str(pod.paths.work / name)!r}\n{LEFT[what]}\n"
    # Say that all is well, and end before anything can be written.
    code += (
        "for fd in range(3, 20):\n"
        "    try:\n"
        "        os.write(fd, b'{\"written\": true}\\n')\n"
        "    except OSError:\n"
        "        pass\n"
        "os._exit(0)\n"
    )
    pod.plan(code)


@pytest.fixture(scope="module")
def left(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Pod, Ran]]:
    test = "test_what_the_code_leaves_in_place_of_the_files"
    return run_together(request, tmp_path_factory, test, _leave)


@pytest.mark.parametrize("what", LEFT)
def test_what_the_code_leaves_in_place_of_the_files(
    left: Mapping[str, tuple[Pod, Ran]], what: str
) -> None:
    pod, ran = left[what]
    assert ran.code == 0, ran.printed
    outcome = pod.outcome()
    assert outcome.reason == Reason.CIRCUIT_INVALID
    assert "left no circuit that can be read" in outcome.message
    assert stat.S_ISREG((pod.paths.work / "outcome.json").lstat().st_mode)
    assert not (pod.paths.work / "circuit.qpy").exists()


FORGED = {
    "a success of its own": '{"reason": null}',
    "a reason that is not its to give": '{"reason": "PodLost", "message": "free retry"}',
    "deep JSON": "[" * 20_000,
    "much of it": "x" * 1_000_000,
    "a message of another type": '{"reason": "NoCircuit", "message": ["x"]}',
    "control characters": '{"reason": "NoCircuit", "message": "\\u001b[2J\\u202egone"}',
}


def _forge(pod: Pod, what: str) -> None:
    code = (
        "import os\n"
        f"said = {FORGED[what]!r}.encode() + b'\\n'\n"
        "for fd in range(3, 20):\n"
        "    try:\n"
        "        os.write(fd, said)\n"
        "    except OSError:\n"
        "        pass\n"
        "os._exit(5)\n"
    )
    pod.plan(code)


@pytest.fixture(scope="module")
def forged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Pod, Ran]]:
    return run_together(request, tmp_path_factory, "test_a_forged_answer", _forge)


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_answer(forged: Mapping[str, tuple[Pod, Ran]], what: str) -> None:
    pod, ran = forged[what]
    assert ran.code == 0
    outcome = pod.outcome()
    assert outcome.reason in (Reason.CIRCUIT_EXITED, Reason.NO_CIRCUIT)
    assert outcome.message.replace("\N{REPLACEMENT CHARACTER}", "").isprintable()


def test_the_code_sees_no_environment_of_the_container(pod: Pod) -> None:
    code = BELL + (
        "import os\nprint(sorted(os.environ))\n"
        "try:\n"
        "    print(open(f'/proc/{os.getppid()}/environ').read())\n"
        "except OSError as error:\n"
        "    print(type(error).__name__)\n"
    )
    pod.plan(code)
    pod.circuit(KUBERNETES_SERVICE_HOST="10.0.0.1", SECRET_TOKEN="hunter2")
    printed = pod.outcome().printed
    assert "KUBERNETES" not in printed.splitlines()[0]
    assert "SECRET" not in printed.splitlines()[0]
    if os.getuid() != 0:
        assert printed.splitlines()[1] == "PermissionError"


def test_a_source_that_is_not_the_planned_one(pod: Pod) -> None:
    pod.plan(BELL)
    (pod.paths.input / "circuit.py").write_text(BELL + "#\n")
    assert pod.circuit().code == 0
    assert pod.outcome().reason == Reason.SOURCE_HASH_MISMATCH


FORGED_SIGNAL = """
import ctypes, os, platform, struct
call = {"x86_64": 129, "aarch64": 138}[platform.machine()]  # rt_sigqueueinfo(2)
# si_signo, si_errno, si_code = SI_QUEUE, si_pid = 0: as from outside the pod
info = struct.pack("iiii4x", 15, 0, -1, 0).ljust(128, b"\\0")
pid = os.getpid()
while pid > 1:
    pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    if "runner.stage" not in open(f"/proc/{pid}/cmdline").read():
        break
    assert ctypes.CDLL(None).syscall(call, pid, 15, info) == 0
    print("sent", flush=True)
"""


def test_a_signal_that_says_it_is_from_outside_is_not_believed(pod: Pod) -> None:
    pod.plan(FORGED_SIGNAL + BELL)
    ran = pod.circuit()
    assert ran.code == 0
    assert "sent" in pod.outcome().printed
    assert pod.outcome().reason is None


def test_a_pod_that_is_deleted_ends_at_once(pod: Pod) -> None:
    import subprocess
    import sys

    from .support import REPOSITORY

    pod.plan("import time\nprint('up', flush=True)\ntime.sleep(100)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "qiskit_controller.runner", "circuit", "--root", str(pod.root)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 143
    assert not (pod.paths.work / "outcome.json").exists()
