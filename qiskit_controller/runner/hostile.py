"""Read what untrusted code left behind: files that may be anything, text that may be anything."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

# A circuit's name and the like; longer ones are cut.
MESSAGE_CHARACTERS = 1000


# ANSI escape sequences of the usual form.
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class Unreadable(Exception):
    """There is no such file, or it is not one that may be read; the message says why."""


def read_file(folder: Path, name: str, limit: int) -> bytes:
    """The content of a regular file directly in `folder`.

    Links are not followed, pipes and devices neither opened for long nor read, and what
    exceeds `limit` bytes is refused before it is read.

    Raises:
        Unreadable: as told.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(folder / name, flags)
    except FileNotFoundError:
        raise Unreadable(f"{name} is missing") from None
    except OSError as error:
        raise Unreadable(f"{name} cannot be opened: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable(f"{name} is not a regular file")
        if found.st_size > limit:
            raise Unreadable(f"{name} has {found.st_size} bytes; {limit} are allowed")
        with os.fdopen(fd, "rb", closefd=False) as file:
            # It could grow while it is read.
            content = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit:
        raise Unreadable(f"{name} has more than {limit} bytes")
    return content


def clean(text: str, limit: int | None = None, *, lines: bool = False) -> str:
    """Text that can be shown on a terminal and put into a status.

    Colours and cursor movements are taken out. Other control characters, format characters
    (which hide or reorder text) and lone surrogates become U+FFFD. Without `lines`, white space
    of any kind becomes one blank.

    Args:
        limit: characters to keep.
        lines: keep line ends and tabs.
    """
    text = _TERMINAL.sub("", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n") if lines else " ".join(text.split())
    text = "".join(
        each if each.isprintable() or (lines and each in "\n\t") else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return text
