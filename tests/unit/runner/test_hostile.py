"""Files and text of untrusted origin."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiskit_controller.runner.hostile import Unreadable, clean, read_file


def test_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_file(tmp_path, "x", 5) == b"12345"
    with pytest.raises(Unreadable, match="x has 5 bytes; 4 are allowed"):
        read_file(tmp_path, "x", 4)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        before = len(list(Path("/proc/self/fd").iterdir()))
        for name in ("link", "folder", "pipe", "socket", "nothing"):
            with pytest.raises(Unreadable, match=name):
                read_file(tmp_path, name, 100)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("two\n lines\t\r\n", "two lines"),
        (
            "\x1b[31mred\x1b[0m \x1b]0;title\x07",
            "red \N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}",
        ),
        ("\u202eleft", "\N{REPLACEMENT CHARACTER}left"),
        ("\udc80", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_clean_keeps_lines_where_told() -> None:
    assert clean("a\n\tb\r\nc\rd\x07", lines=True) == "a\n\tb\nc\nd\N{REPLACEMENT CHARACTER}"


def test_clean_cuts() -> None:
    assert clean("x" * 11, 10) == "x" * 9 + "\N{HORIZONTAL ELLIPSIS}"
    assert clean("x" * 10, 10) == "x" * 10


@given(st.text())
def test_what_is_clean_can_be_printed_and_stored(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isprintable()
    cleaned.encode()
    assert clean(cleaned) == cleaned
