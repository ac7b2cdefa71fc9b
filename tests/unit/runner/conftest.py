from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .ibm_support import ibm, make, service
from .support import OUTPUT, RECORD, ApiServer, Pod, serve

# Fixtures are found by name, here.
__all__ = ["ibm", "make", "service"]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """An API server with the ConfigMaps that the controller makes for a job."""
    api = ApiServer()
    api.create(OUTPUT)
    api.create(RECORD)
    http = serve(api)
    yield api
    http.shutdown()
    http.server_close()
