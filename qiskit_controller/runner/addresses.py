"""Which network addresses the stage ``source`` may talk to.

Users choose the URLs, but the pod that fetches them stands inside the cluster's network. So
only addresses of the public Internet are let through, unless the operator allows others. What is
judged is the address that the connection is then made to, never a name that could be resolved a
second time to something else.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import attrs

from qiskit_controller.api.run import Reason
from qiskit_controller.runner.fetched import SourceFailed

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Gives every address of a host, as text, or raises OSError.
Resolver = Callable[[str, int], Sequence[str]]

# IANA's registry of special-purpose addresses, where it does not say "globally reachable", and
# multicast. Written out, because what Python's is_global says differs between its releases.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # Azure: the host of the virtual machine
    )
)
# All of IPv6 that is given out to the public, and what of it is not.
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(each) for each in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# Forms of IPv6 that a router or the kernel turns into the IPv4 address in them: the prefix, and
# how many bits follow that address.
_EMBEDDING = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
)


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks from ``10.0.0.0/8`` and the like.

    Raises:
        ValueError: one is not a network.
    """
    return tuple(ipaddress.ip_network(each) for each in texts)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    for network, shift in _EMBEDDING:
        if address in network:
            return IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
    return None


def is_allowed(
    address: Address, allowed: Sequence[Network] = (), denied: Sequence[Network] = ()
) -> bool:
    """Whether a connection to the address may be made.

    Args:
        allowed: what the operator lets through beside the public Internet.
        denied: what the operator does not let through in any case.
    """
    if any(address in network for network in denied if network.version == address.version):
        return False
    if any(address in network for network in allowed if network.version == address.version):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    inner = _embedded(address)
    if inner is not None:
        return is_allowed(inner, allowed, denied)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def system_resolver(host: str, port: int) -> list[str]:
    """What the pod's own resolver says. It has no time limit, so it gets a thread of its own,
    which the stage's deadline need not wait for."""
    found: list[str] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                found.append(str(address[0]))
        except (OSError, UnicodeError) as error:
            failed.append(error if isinstance(error, OSError) else OSError(str(error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return list(dict.fromkeys(found))


@attrs.frozen
class AddressPolicy:
    """Resolves hosts to addresses that may be talked to.

    Attributes:
        allowed: networks that the operator allows beside the public Internet.
        denied: networks that are not talked to in any case.
        resolve_name: for names; a test has its own.
    """

    allowed: tuple[Network, ...] = ()
    denied: tuple[Network, ...] = ()
    resolve_name: Resolver = system_resolver

    def resolve(self, host: str, port: int) -> list[Address]:
        """Every address of the host, each of them allowed.

        One address that is not allowed refuses the host: a name that points both outside and
        inside has no good reason to.

        Raises:
            SourceFailed: SourceUnavailable or SourceAddressForbidden.
        """
        try:
            found: list[Address] = [ipaddress.ip_address(host)]
        except ValueError:
            found = self._look_up(host, port)
        for address in found:
            if not is_allowed(address, self.allowed, self.denied):
                shown = "" if str(address) == host else f" ({address})"
                raise SourceFailed(
                    Reason.SOURCE_ADDRESS_FORBIDDEN,
                    f"{host}{shown} is not an address that sources may be fetched from: the "
                    "operator denies it (--source-deny-cidr), or it is the cluster's API server"
                    if is_allowed(address, self.allowed)
                    else f"{host}{shown} is not an address of the public Internet, and the "
                    "operator does not allow it as a source (--source-allow-cidr)",
                )
        return found

    def is_own(self, addresses: Sequence[Address]) -> bool:
        """Whether the operator vouches for all these addresses."""
        return all(
            any(each in network for network in self.allowed if network.version == each.version)
            for each in addresses
        )

    def _look_up(self, host: str, port: int) -> list[Address]:
        try:
            # A zone ("fe80::1%eth0") says nothing about who is there.
            texts = [each.partition("%")[0] for each in self.resolve_name(host, port)]
        except OSError as error:
            raise SourceFailed(
                Reason.SOURCE_UNAVAILABLE,
                f"the host {host} cannot be resolved: {error.strerror or error}",
            ) from None
        if not texts:
            raise SourceFailed(Reason.SOURCE_UNAVAILABLE, f"the host {host} has no address")
        return [ipaddress.ip_address(each) for each in texts]
