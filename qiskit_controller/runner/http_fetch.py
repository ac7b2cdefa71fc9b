"""GET over http and https, to checked addresses only.

Redirects are followed here and not by a library, so that every hop is parsed, resolved and
checked like the first; the connection is then made to the very address that was checked, while
the certificate and the Host header are still about the name. Proxies of the environment are not
used: they would resolve names themselves.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urljoin

import attrs
import urllib3
from urllib3.exceptions import HTTPError, SSLError
from urllib3.util import Timeout

from qiskit_controller.api.run import Reason
from qiskit_controller.api.sources import BadAddress, HttpAddress, parse_url
from qiskit_controller.runner.addresses import Address, AddressPolicy
from qiskit_controller.runner.fetched import SourceFailed

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
# Between two packets; how long all of it may take is the stage's deadline.
READ_SECONDS = 30.0
USER_AGENT = "qiskit-controller"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 65_536


class TooLarge(Exception):
    """The body exceeds the limit."""


@attrs.frozen
class Credentials:
    """A user name and a password, which `repr` does not show."""

    username: str = attrs.field(repr=False)
    password: str = attrs.field(repr=False)

    def basic(self) -> str:
        """The Authorization header."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


@attrs.frozen
class Response:
    """An answer that is not a redirect.

    Attributes:
        address: where it came from in the end.
        peers: the addresses of its host, all of them allowed.
        body: empty unless the status is 200.
    """

    address: HttpAddress
    peers: tuple[Address, ...]
    status: int
    content_type: str
    body: bytes


@attrs.frozen
class Http:
    """Makes requests under a policy.

    Attributes:
        ca_file: certificates to trust instead of the system's.
    """

    policy: AddressPolicy
    ca_file: Path | None = None

    def get(
        self,
        address: HttpAddress,
        limit: int,
        *,
        headers: Mapping[str, str] | None = None,
        credentials: Credentials | None = None,
        truncate: bool = False,
    ) -> Response:
        """Ask for a URL, and follow where it leads.

        Args:
            limit: bytes of the body.
            credentials: sent to the first origin only, never to one it redirects to.
            truncate: leave out what is beyond the limit, instead of raising TooLarge.

        Raises:
            SourceFailed: there is no answer, or none that may be had.
            TooLarge: see `truncate`.
        """
        here = address
        for _ in range(MAX_REDIRECTS + 1):
            peers = self.policy.resolve(here.host, here.port)
            sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
            if credentials is not None and here.origin == address.origin:
                self._check_confidential(here, peers)
                sent["Authorization"] = credentials.basic()
            answer = self._exchange(here, peers, sent, limit, truncate)
            if isinstance(answer, Response):
                return answer
            here = _next_hop(here, answer)
        raise SourceFailed(
            Reason.SOURCE_INVALID, f"{address} redirects more than {MAX_REDIRECTS} times"
        )

    def _check_confidential(self, here: HttpAddress, peers: list[Address]) -> None:
        if here.scheme == "http" and not self.policy.is_own(peers):
            raise SourceFailed(
                Reason.SOURCE_FORBIDDEN,
                f"credentials are not sent to {here} without encryption; use https",
            )

    def _exchange(
        self,
        here: HttpAddress,
        peers: list[Address],
        headers: Mapping[str, str],
        limit: int,
        truncate: bool,
    ) -> Response | str:
        """The answer, or where it redirects to."""
        with self._connect(here, peers, headers) as answer:
            location = answer.headers.get("Location")
            if answer.status in _REDIRECTS and location:
                return location
            body = b""
            if answer.status == 200:
                body = _read(here, answer, limit, truncate)
            return Response(
                address=here,
                peers=tuple(peers),
                status=answer.status,
                content_type=answer.headers.get("Content-Type", "").partition(";")[0].strip(),
                body=body,
            )

    def _connect(
        self, here: HttpAddress, peers: list[Address], headers: Mapping[str, str]
    ) -> _Answer:
        """The headers of the answer, from the first address that can be connected to."""
        failure: HTTPError | None = None
        for peer in peers:
            pool = self._pool(here, peer)
            try:
                answer = pool.urlopen(
                    "GET",
                    here.target,
                    headers={"Host": here.authority, **headers},
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                )
            except SSLError as error:
                pool.close()
                raise _tls_failed(here, error) from None
            except HTTPError as error:
                pool.close()
                failure = error
                continue
            return _Answer(pool, answer)
        assert failure is not None  # noqa: S101 - there is at least one address
        raise _unavailable(here, failure) from None

    def _pool(self, here: HttpAddress, peer: Address) -> urllib3.HTTPConnectionPool:
        timeout = Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        if here.scheme == "http":
            return urllib3.HTTPConnectionPool(str(peer), here.port, timeout=timeout)
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        return urllib3.HTTPSConnectionPool(
            str(peer),
            here.port,
            timeout=timeout,
            ssl_context=context,
            server_hostname=here.host,
            assert_hostname=here.host,
        )


@attrs.frozen
class _Answer:
    """An open response, closed with its connection."""

    pool: urllib3.HTTPConnectionPool
    response: urllib3.BaseHTTPResponse

    def __enter__(self) -> urllib3.BaseHTTPResponse:
        return self.response

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.pool.close()


def _read(here: HttpAddress, answer: urllib3.BaseHTTPResponse, limit: int, truncate: bool) -> bytes:
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        # Asked for as it is; unpacking it could take any amount of memory.
        raise SourceFailed(
            Reason.SOURCE_INVALID, f"{here} is sent with the content encoding {encoding[:40]}"
        )
    body = bytearray()
    try:
        for chunk in answer.stream(_CHUNK, decode_content=False):
            body += chunk
            if len(body) > limit:
                if not truncate:
                    raise TooLarge
                break
    except HTTPError as error:
        raise _unavailable(here, error) from None
    return bytes(body[:limit])


def _next_hop(here: HttpAddress, location: str) -> HttpAddress:
    try:
        there = parse_url(urljoin(here.url, location))
    except (BadAddress, ValueError) as error:
        why = error if isinstance(error, BadAddress) else "is not a URL"
        raise SourceFailed(
            Reason.SOURCE_INVALID, f"{here} redirects to an address that {why}"
        ) from None
    if here.scheme == "https" and there.scheme == "http":
        raise SourceFailed(
            Reason.SOURCE_FORBIDDEN, f"{here} redirects to {there}, which is not encrypted"
        )
    return there


def _tls_failed(here: HttpAddress, error: HTTPError) -> SourceFailed:
    cause = error.args[0] if error.args else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return SourceFailed(
            Reason.SOURCE_UNTRUSTED,
            f"the certificate of {here.origin} is not to be trusted: {cause.verify_message}",
        )
    if isinstance(cause, ssl.CertificateError) or "doesn't match" in str(error):
        return SourceFailed(
            Reason.SOURCE_UNTRUSTED, f"the certificate of {here.origin} is for another host"
        )
    return _unavailable(here, error)


def _unavailable(here: HttpAddress, error: HTTPError) -> SourceFailed:
    return SourceFailed(
        Reason.SOURCE_UNAVAILABLE, f"{here.origin} does not answer: {_describe(error)}"
    )


def _describe(error: HTTPError) -> str:
    """urllib3 wraps the cause in the name of the pool and the address of an object."""
    cause: BaseException = error
    while True:
        inner = cause.__cause__ or cause.__context__
        if inner is None:
            break
        cause = inner
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    text = str(cause).rpartition(": ")[2] if "object at 0x" in str(cause) else str(cause)
    return text or type(cause).__name__
