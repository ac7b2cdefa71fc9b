"""Results in a mounted volume: whole or not at all, and never outside of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qiskit_controller.api.outputs import BadLocation
from qiskit_controller.api.run import Reason
from qiskit_controller.runner.formats import Formatted
from qiskit_controller.runner.stores.base import StoreFailed
from qiskit_controller.runner.stores.pvc import VolumeStore

from .store_support import OTHER_RESULT, RESULT, UID, plan_for

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


def store(volume: Path, path: str | None = None, uid: str = UID) -> VolumeStore:
    return VolumeStore.of(plan_for(uid, type="pvc", location="claim", path=path), volume)


def target(volume: Path, *below: str) -> Path:
    return volume.joinpath(*below, "default", "bell", UID, "results.json")


def listing(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir()
    return made


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    made = tmp_path / "small"
    made.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", made], check=True)
    yield made
    subprocess.run(["umount", made], check=True)


def reason_of(call: Callable[[], object]) -> StoreFailed:
    with pytest.raises(StoreFailed) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("path", "below"),
    [(None, ()), ("a", ("a",)), ("a/b c/", ("a", "b c")), ("..x/.y", ("..x", ".y"))],
)
def test_a_result_is_stored(volume: Path, path: str | None, below: tuple[str, ...]) -> None:
    made = store(volume, path)
    made.check(1000)
    assert not target(volume, *below).exists()
    assert listing(target(volume, *below).parent) == []
    stored = made.put(RESULT, "")
    file = target(volume, *below)
    assert file.read_bytes() == RESULT.content
    assert stored.location == f"pvc/claim/{file.relative_to(volume)}"
    assert (stored.size, stored.sha256) == (len(RESULT.content), RESULT.sha256)
    # Whoever mounts the volume next has another user.
    assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444
    assert stat.S_IMODE(file.parent.stat().st_mode) & 0o555 == 0o555


def test_the_same_job_replaces_its_own_and_leaves_no_litter(volume: Path) -> None:
    store(volume).put(RESULT, "")
    # As a pod that was killed while it wrote would leave it.
    (target(volume).parent / ".results-0123456789abcdef").write_bytes(b"half")
    store(volume).put(OTHER_RESULT, "")
    assert target(volume).read_bytes() == OTHER_RESULT.content
    assert listing(target(volume).parent) == ["results.json"]


def test_another_job_of_the_same_name_has_a_folder_of_its_own(volume: Path) -> None:
    store(volume, uid="another").put(OTHER_RESULT, "")
    store(volume).put(RESULT, "")
    assert target(volume).read_bytes() == RESULT.content
    assert (volume / "default/bell/another/results.json").read_bytes() == OTHER_RESULT.content


@pytest.mark.parametrize(
    "path", ["../x", "/etc", "a/../../b", "a//b", ".", "a/./b", "a\0b", "x" * 300]
)
def test_paths_that_leave_the_volume(volume: Path, path: str) -> None:
    with pytest.raises(BadLocation):
        store(volume, path)


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a link to elsewhere": lambda here, elsewhere: here.symlink_to(elsewhere),
    "a relative link": lambda here, elsewhere: here.symlink_to("../" * 9 + str(elsewhere)),
    "a link to nowhere": lambda here, elsewhere: here.symlink_to("nowhere"),
    "a link to itself": lambda here, elsewhere: here.symlink_to(here),
    "a file": lambda here, elsewhere: here.write_text("x"),
    "a pipe": lambda here, elsewhere: os.mkfifo(here),
}


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("what", PLANTED)
def test_planted_folders(volume: Path, tmp_path: Path, what: str, depth: int) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here = volume.joinpath(*("shared", "default", "bell", UID)[: depth + 1])
    here.parent.mkdir(parents=True, exist_ok=True)
    PLANTED[what](here, elsewhere)
    made = store(volume, "shared")
    for call in (lambda: made.check(0), lambda: made.put(RESULT, "")):
        assert reason_of(call).reason == Reason.OUTPUT_CONFLICT
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("what", [each for each in PLANTED if each != "a file"])
def test_planted_files(volume: Path, tmp_path: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    target(volume).parent.mkdir(parents=True)
    PLANTED[what](target(volume), elsewhere)
    assert reason_of(lambda: store(volume).put(RESULT, "")).reason == Reason.OUTPUT_CONFLICT
    assert elsewhere.read_text() == "precious"


@root
def test_a_full_volume(small: Path) -> None:
    made = store(small)
    assert reason_of(lambda: made.check(300_000)).reason == Reason.OUTPUT_FULL
    made.check(1000)
    large = Formatted("results.json", b"x" * 300_000, True, "application/json")
    made.put(RESULT, "")
    error = reason_of(lambda: made.put(large, ""))
    assert error.reason == Reason.OUTPUT_FULL
    assert "claim is full (No space left on device)" in error.message
    # What was there is there, and what could not be written takes no room.
    assert target(small).read_bytes() == RESULT.content
    assert listing(target(small).parent) == ["results.json"]
    (small / "ballast").write_bytes(b"x" * 240_000)
    assert reason_of(lambda: made.check(1)).reason == Reason.OUTPUT_FULL
    (small / "ballast").unlink()
    made.put(OTHER_RESULT, "")


@root
@pytest.mark.parametrize("how", ["read-only", "someone else's"])
def test_a_volume_that_cannot_be_written(small: Path, tmp_path: Path, how: str) -> None:
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        error = reason_of(lambda: store(small).check(0))
        assert (error.reason, error.patience) == (Reason.OUTPUT_DENIED, 0)
        assert "Read-only file system" in error.message
        return
    # Root may do anything, so another user tries; there is no way back from one.
    small.chmod(0o755)
    script = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from qiskit_controller.runner.stores.base import StoreFailed\n"
        "from tests.unit.runner.test_stores_pvc import store\n"
        "made = store(Path(sys.argv[1]))\n"
        "os.setgid(65532); os.setuid(65532)\n"
        "try: made.check(0)\n"
        "except StoreFailed as error: print(error.reason, error.message)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(small)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("OutputDenied "), done.stdout
    assert "user 65532" in done.stdout


def test_a_volume_that_is_not_mounted(tmp_path: Path) -> None:
    error = reason_of(lambda: store(tmp_path / "nothing").check(0))
    assert error.reason == Reason.OUTPUT_UNAVAILABLE
    assert error.patience > 60
