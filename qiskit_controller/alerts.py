"""Posts the alerts of QiskitBudgets to the operator's webhook.

The address is the operator's, never a user's: the controller reaches places that users do not.
"""

from __future__ import annotations

import asyncio

import aiohttp
import attrs
import structlog

from qiskit_controller.reconcilers.qiskitbudget.reconciler import Alert

log = structlog.get_logger(__name__)

TRIES = 3
_TIMEOUT_SECONDS = 5.0
_WAIT_SECONDS = 1.0


@attrs.define
class Alerts:
    """Sends each alert, at most three times if nobody answers; then it is only logged.

    Attributes:
        url: where to; None for nowhere.
    """

    url: str | None

    async def send(self, alert: Alert) -> None:
        """POST the alert as a JSON object with the attributes of :class:`Alert`."""
        log.warning("budget alert", **attrs.asdict(alert))
        if not self.url:
            return
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for number in range(1, TRIES + 1):
                told = await self._post(session, alert)
                if told is None:
                    return
                log.warning("alert not delivered", error=told, number=number)
                if number < TRIES:
                    await asyncio.sleep(_WAIT_SECONDS * number)

    async def _post(self, session: aiohttp.ClientSession, alert: Alert) -> str | None:
        """Why it was not taken; None when it was. Addresses may hold secrets, so none is told."""
        try:
            async with session.post(
                str(self.url), json=attrs.asdict(alert), allow_redirects=False
            ) as response:
                return None if response.status < 300 else f"HTTP status {response.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return type(error).__name__
