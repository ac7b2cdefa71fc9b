"""docs/endings.md tells of every reason, and of no other, and how each is retried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qiskit_controller.api.run import Reason

DOC = Path(__file__).parents[3] / "docs" / "endings.md"
# | `Reason` | when | message | retried |
ROW = re.compile(r"^\| `(\w+)` \|.*\| (\w+) \|$", re.MULTILINE)


def rows() -> dict[str, str]:
    """How a reason is retried, by reason, from the tables that have such a column."""
    text = DOC.read_text()
    found: dict[str, str] = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        if "| Retried |" in section:
            for reason, retried in ROW.findall(section):
                assert reason not in found, f"{reason} is there twice"
                found[reason] = retried
    return found


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_documented_with_how_it_is_retried(reason: Reason) -> None:
    assert rows().get(reason.value) == reason.retry.value


def test_no_other_reason_is_documented() -> None:
    assert set(rows()) == {each.value for each in Reason}
