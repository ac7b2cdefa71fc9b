from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.standins.braket.client import Standin, running

from .support import Client, plan_for, secret


@pytest.fixture(scope="session")
def shared() -> Iterator[Standin]:
    """The stand-in; devices and faults are everybody's."""
    with running() as standin:
        yield standin


@pytest.fixture
def standin(shared: Standin) -> Iterator[Standin]:
    """The stand-in for a test that gives it orders: nothing of them is left."""
    before = shared.devices()
    yield shared
    shared.restore(before)


@pytest.fixture(autouse=True)
def no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own AWS identity, if it has one, is none of these tests' business."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connect(shared: Standin, tmp_path: Path) -> Callable[..., Client]:
    """Makes the client of a job on a device: ``connect(arn, keys={...}, execution={...})``."""

    def made(arn: str, *, keys: dict[str, str] | None = None, **spec: Any) -> Client:
        folder = secret(tmp_path / "credentials", shared.secret() | (keys or {}))
        return Client.of(plan_for(arn, **spec), folder)

    return made
