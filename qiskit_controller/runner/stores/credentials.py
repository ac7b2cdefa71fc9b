"""The Secret of ``spec.credentials.secretRef``, as the executor finds it mounted.

Its values go to an SDK and nowhere else: texts that an SDK gives back are cleaned of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

_HIDDEN = "[redacted]"
# Shorter values would hide half of every text; no secret is that short.
_SHORTEST = 6
# What every Secret for a store may say in the open.
_PUBLIC = frozenset({"region", "endpoint"})
_SECRET_FILES = 1 << 20

# At debug level these print headers and bodies, tokens and signatures among them.
_TALKATIVE = ("boto3", "botocore", "s3transfer", "urllib3", "requests", "google")


@attrs.frozen
class Credentials:
    """Values by key; empty without a Secret."""

    values: Mapping[str, str] = attrs.field(factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path) -> Credentials:
        """What is mounted, and nothing where nothing is.

        Values lose white space at their ends: ``kubectl create secret --from-file`` keeps the
        file's last newline.
        """
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        values = {}
        if folder.is_dir():
            for file in folder.iterdir():
                # The kubelet's own links begin with "..".
                if not file.name.startswith(".") and file.is_file():
                    content = file.read_bytes()[:_SECRET_FILES]
                    values[file.name] = content.decode(errors="replace").strip()
        return cls(values)

    def get(self, *names: str) -> str | None:
        """The value of the first of these keys that is there and not empty."""
        return next((self.values[name] for name in names if self.values.get(name)), None)

    def scrub(self, text: str) -> str:
        """`text` without any of the values."""
        for value in sorted(self._hidden(), key=len, reverse=True):
            text = text.replace(value, _HIDDEN)
        return text

    def _hidden(self) -> Iterator[str]:
        for name, value in self.values.items():
            if name in _PUBLIC or len(value) < _SHORTEST:
                continue
            yield value
            if value.startswith("{"):
                # A service account's JSON comes back in parts.
                try:
                    parts = json.loads(value)
                except ValueError:
                    continue
                for part in ("private_key", "private_key_id"):
                    inner = str(parts.get(part) or "")
                    if len(inner) >= _SHORTEST:
                        yield inner
