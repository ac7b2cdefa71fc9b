"""Results as files of a PersistentVolumeClaim, mounted in the executor only.

The file is ``[<output.path>/]<namespace>/<name>/<uid>/results.<format>``: the UID in the path
tells whose it is. The volume may be shared with anyone, who may plant what they like: every
folder on the way is opened relative to the one above it and no symbolic link is followed, so
that nothing is ever written outside of the volume.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from qiskit_controller.api.outputs import folders
from qiskit_controller.api.run import Plan, Reason, StoredResult
from qiskit_controller.runner.formats import Formatted
from qiskit_controller.runner.stores.base import StoreFailed, conflict, unavailable

# For whoever mounts the volume after us, under whatever user.
_FOLDER_MODE = 0o755
_FILE_MODE = 0o644
_TEMPORARY = ".results-"
# Beside the result itself: an inode, a folder's block.
_SPARE_BYTES = 16_384

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# O_NOFOLLOW, and O_DIRECTORY on what is no folder.
_PLANTED = frozenset({errno.ELOOP, errno.ENOTDIR})


@attrs.frozen
class VolumeStore:
    """See :class:`~.base.Store`.

    Attributes:
        root: where the volume is mounted.
        claim: its name, for messages.
        folders: from the root down to the job's own.
    """

    root: Path
    claim: str
    folders: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, root: Path) -> VolumeStore:
        """The store of a job.

        Raises:
            BadLocation: ``spec.output.path`` is no path inside the volume.
        """
        job = plan.job
        below = (*folders(plan.spec.output.path), job.namespace, job.name, job.uid)
        return cls(root, plan.output_location, below)

    @property
    def address(self) -> str:
        """The claim and the folder in it."""
        return "/".join(("pvc", self.claim, *self.folders))

    def check(self, least: int) -> None:
        """Make the folder; write a file in it; see that there is room."""
        with self._errors("written to"), self._folder() as folder:
            room = os.fstatvfs(folder)
            free = room.f_bavail * room.f_frsize
            if free < least + _SPARE_BYTES:
                raise self._full(f"{free} bytes are free, the result needs {least} or more")
            name = self._temporary()
            with _created(folder, name) as file:
                os.write(file, b"\0" * 4096)
                os.fsync(file)
            os.unlink(name, dir_fd=folder)

    def put(self, formatted: Formatted, counts: str) -> StoredResult:
        """Write beside, flush to the disk, rename: whole or not at all, also after a crash."""
        with self._errors("written"), self._folder() as folder:
            self._sweep(folder)
            self._check_target(folder, formatted.file)
            name = self._temporary()
            try:
                with _created(folder, name) as file:
                    _write_all(file, formatted.content)
                    os.fsync(file)
                os.rename(name, formatted.file, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise
            os.fsync(folder)
        return StoredResult(
            location=f"{self.address}/{formatted.file}",
            size=len(formatted.content),
            sha256=formatted.sha256,
        )

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        """The job's own folder, made where it is not there, as a file descriptor."""
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in self.folders:
                made = False
                try:
                    os.mkdir(name, _FOLDER_MODE, dir_fd=here)
                    made = True
                except FileExistsError:
                    pass
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
                if made:
                    os.fsync(here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _check_target(self, folder: int, file: str) -> None:
        """The UID is in the path, so a file of that name is this job's; anything else is not."""
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(file, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise conflict(f"{self.address}/{file}, which is not a file,")

    def _sweep(self, folder: int) -> None:
        """Take away what a pod that was killed while it wrote has left."""
        for name in os.listdir(folder):
            if name.startswith(_TEMPORARY):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)

    def _temporary(self) -> str:
        return f"{_TEMPORARY}{os.urandom(8).hex()}"

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Operating system errors as StoreFailed."""
        try:
            yield
        except OSError as error:
            why = os.strerror(error.errno or 0)
            if error.errno in _FULL:
                raise self._full(why) from None
            if error.errno in _READ_ONLY:
                raise StoreFailed(
                    Reason.OUTPUT_DENIED,
                    f"the volume of PersistentVolumeClaim {self.claim} cannot be {what} ({why}): "
                    f"it must be writable for user {os.getuid()} or group {os.getgid()}",
                ) from None
            if error.errno in _PLANTED:
                raise conflict(
                    f"a part of {self.address} is not a folder (links are not followed), and"
                ) from None
            raise unavailable(
                f"the volume of PersistentVolumeClaim {self.claim} cannot be {what}: {why}"
            ) from None

    def _full(self, why: str) -> StoreFailed:
        return StoreFailed(
            Reason.OUTPUT_FULL,
            f"the volume of PersistentVolumeClaim {self.claim} is full ({why}): make room, or "
            "expand the claim",
        )


@contextlib.contextmanager
def _created(folder: int, name: str) -> Iterator[int]:
    """A new file, never one that is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    file = os.open(name, flags, _FILE_MODE, dir_fd=folder)
    try:
        yield file
    finally:
        os.close(file)


def _write_all(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]
