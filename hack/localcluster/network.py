"""The node's network: a namespace of its own, and one link to the host.

Inside are a bridge for the pods, kube-proxy's rules and every address of the
cluster, the same in each cluster. On the host there is one end of a veth pair
with an address from a free /30, through which kubectl and the tests come in;
nothing else: no rule, no forwarding. All of it disappears with the namespace.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass

from localcluster.daemon import wait_until
from localcluster.proc import ClusterError, run, succeeds

POD_RANGE = "10.88.0.0/16"
GATEWAY = "10.88.0.1"  # the bridge: the node as pods see it
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"  # always the first of the service range
BRIDGE = "cni0"
_LINKS = ipaddress.IPv4Network("10.87.0.0/16")  # one /30 per cluster

Network = ipaddress.IPv4Network


@dataclass(frozen=True)
class Link:
    """The veth pair of one cluster."""

    interface: str  # its name on the host
    outside: str  # the host's address
    inside: str  # the node's address


def choose_link(cluster: str, interface: str) -> Link:
    """A link on a /30 that nothing on this machine uses. Raises ClusterError if none."""
    start = sum(cluster.encode()) * 7
    chosen = free_subnet(start, _used_networks())
    if chosen is None:
        raise ClusterError(
            f"could not find a free network in {_LINKS}\n"
            "  Remove clusters you no longer need (hack/cluster down --name ...)."
        )
    return Link(interface=interface, outside=str(chosen[1]), inside=str(chosen[2]))


def free_subnet(start: int, used: Iterable[Network]) -> Network | None:
    """The first /30 that overlaps none of ``used``, counting from number ``start`` around."""
    taken = list(used)
    total = 2 ** (30 - _LINKS.prefixlen)
    base = int(_LINKS.network_address)
    for number in range(total):
        address = base + 4 * ((start + number) % total)
        candidate = ipaddress.IPv4Network((address, 30))
        if not any(candidate.overlaps(network) for network in taken):
            return candidate
    return None


def connect(link: Link, init: int) -> None:
    """Bring up the node's network: the link, the bridge and forwarding between them.

    Does nothing where it is up already. Raises ClusterError.
    """
    if not exists(link.interface):
        _ip("link", "add", link.interface, "type", "veth", "peer", "name", "eth0", "netns", init)
    _ip("addr", "replace", f"{link.outside}/30", "dev", link.interface)
    _ip("link", "set", link.interface, "up")

    inside = ["nsenter", f"--net=/proc/{init}/ns/net", "--"]

    def ip(*arguments: str) -> None:
        run([*inside, "ip", *arguments], what="set up the node's network")

    ip("link", "set", "lo", "up")
    ip("addr", "replace", f"{link.inside}/30", "dev", "eth0")
    ip("link", "set", "eth0", "up")
    # Nothing beyond the host is reachable, and attempts fail at once instead of hanging.
    ip("route", "replace", "unreachable", "default")
    if not succeeds([*inside, "ip", "link", "show", BRIDGE]):
        ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    ip("addr", "replace", f"{GATEWAY}/16", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    # Lets the node's own processes use service addresses, which kube-proxy then rewrites.
    ip("route", "replace", SERVICE_RANGE, "dev", BRIDGE)
    run(
        [*inside, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
        what="let the node forward packets",
    )


def disconnect(interface: str) -> None:
    """Remove what is left of the link on the host. Raises ClusterError."""
    # The kernel removes it with the namespace, a moment after the last process.
    if not wait_until(lambda: not exists(interface), 3.0):
        _ip("link", "del", interface)


def exists(interface: str) -> bool:
    """Whether the host has ``interface``."""
    return succeeds(["ip", "link", "show", "dev", interface])


def _ip(*arguments: object) -> None:
    run(
        ["ip", *map(str, arguments)],
        what="set up the link to the node",
        hint="Install iproute2; the kernel needs veth and bridge.",
    )


def _used_networks() -> list[Network]:
    """Every IPv4 network that the host has an address in or a route to."""
    used = []
    for item in json.loads(run(["ip", "-j", "-4", "addr"], what="list addresses") or "[]"):
        for address in item.get("addr_info", []):
            text = f"{address['local']}/{address['prefixlen']}"
            used.append(ipaddress.IPv4Network(text, strict=False))
    routes = run(["ip", "-j", "-4", "route", "show", "table", "all"], what="list routes")
    for route in json.loads(routes or "[]"):
        if route["dst"] != "default":
            used.append(ipaddress.IPv4Network(route["dst"], strict=False))
    return used
