"""Which addresses may be talked to."""

from __future__ import annotations

import ipaddress

import pytest

from qiskit_controller.api.run import Reason
from qiskit_controller.runner.addresses import AddressPolicy, is_allowed, parse_networks
from qiskit_controller.runner.fetched import SourceFailed

PUBLIC = [
    "1.1.1.1",
    "93.184.215.14",
    "172.15.255.255",
    "172.32.0.1",
    "192.167.255.255",
    "100.63.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
    "2002:101:101::1",
]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.96.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:a00:1::",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_everything_else(address: str) -> None:
    assert not is_allowed(ipaddress.ip_address(address))


def test_the_operator_allows_more() -> None:
    allowed = parse_networks(["10.1.0.0/16", "fd00::/8"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::1"):
        assert is_allowed(ipaddress.ip_address(address), allowed), address
    for address in ("10.2.0.1", "::ffff:10.2.0.1", "fe80::1"):
        assert not is_allowed(ipaddress.ip_address(address), allowed), address


def test_names_are_judged_by_all_their_addresses() -> None:
    answers = {"good": ["1.1.1.1", "1.0.0.1"], "mixed": ["1.1.1.1", "fe80::1%eth0"], "none": []}
    policy = AddressPolicy(resolve_name=lambda host, _port: answers[host])
    assert [str(each) for each in policy.resolve("good", 443)] == ["1.1.1.1", "1.0.0.1"]
    for host, reason in (
        ("mixed", Reason.SOURCE_ADDRESS_FORBIDDEN),
        ("none", Reason.SOURCE_UNAVAILABLE),
    ):
        with pytest.raises(SourceFailed) as raised:
            policy.resolve(host, 443)
        assert raised.value.reason is reason


def test_what_is_denied_stays_so_whatever_is_allowed() -> None:
    policy = AddressPolicy(
        parse_networks(["10.0.0.0/8"]), parse_networks(["10.1.0.0/16", "2600:1900::/28"])
    )
    assert policy.resolve("10.2.0.1", 443)
    for address in ("10.1.0.1", "::ffff:10.1.0.1", "2600:1900::1"):
        with pytest.raises(SourceFailed, match="--source-deny-cidr") as raised:
            policy.resolve(address, 443)
        assert raised.value.reason is Reason.SOURCE_ADDRESS_FORBIDDEN


def test_what_the_operator_vouches_for() -> None:
    policy = AddressPolicy(parse_networks(["10.0.0.0/8"]))
    assert policy.is_own([ipaddress.ip_address("10.0.0.1")])
    assert not policy.is_own([ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("1.1.1.1")])
