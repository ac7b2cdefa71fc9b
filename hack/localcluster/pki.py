"""Keys and certificates of one cluster, made with openssl.

One authority signs everything. Who a component is stands in its certificate:
the organisation is its group and the common name its user, as RBAC sees them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from localcluster.proc import run

# Without a configuration of its own openssl takes the system's, which would make
# every certificate an authority.
_CONFIG = "[req]\ndistinguished_name=name\nprompt=no\n[name]\n"
_DAYS = "825"


class Authority:
    """The cluster's certificate authority in ``folder``, made on first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "openssl.cnf").write_text(_CONFIG)
        self.certificate = folder / "ca.crt"
        self.key = folder / "ca.key"
        if not self.certificate.exists():
            self._request(
                "ca",
                "/CN=qiskit-local-cluster",
                ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"],
                [],
            )

    def issue(
        self,
        name: str,
        *,
        user: str,
        group: str = "",
        addresses: Iterable[str] = (),
        names: Iterable[str] = (),
    ) -> None:
        """Make ``name.crt`` and ``name.key`` if they are not there.

        The certificate is a client's, and a server's too if it has ``addresses``
        or ``names``. Raises ClusterError.
        """
        if (self._folder / f"{name}.crt").exists():
            return
        extensions = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
        ]
        alternatives = [f"IP:{address}" for address in addresses]
        alternatives += [f"DNS:{other}" for other in names]
        usage = "clientAuth"
        if alternatives:
            usage += ",serverAuth"
            extensions.append("subjectAltName=" + ",".join(alternatives))
        extensions.append(f"extendedKeyUsage={usage}")
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        self._request(name, subject, extensions, ["-CA", self.certificate, "-CAkey", self.key])

    def signing_key(self, name: str) -> None:
        """Make the key pair ``name.key`` and ``name.pub`` for service account tokens."""
        private, public = self._folder / f"{name}.key", self._folder / f"{name}.pub"
        if public.exists():
            return
        # RSA: every client library and token reviewer knows RS256.
        run(
            ["openssl", "genpkey", "-algorithm", "RSA", "-out", private],
            what="make the service account key",
        )
        run(
            ["openssl", "pkey", "-in", private, "-pubout", "-out", public],
            what="make the service account key",
        )

    def _request(
        self, name: str, subject: str, extensions: list[str], signer: list[str | Path]
    ) -> None:
        target = self._folder / f"{name}.crt"
        fresh = self._folder / f"{name}.crt.new"
        added = [part for extension in extensions for part in ("-addext", extension)]
        run(
            [
                *("openssl", "req", "-x509", "-config", self._folder / "openssl.cnf"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-days", _DAYS, "-subj", subject, *added, *signer),
                *("-keyout", self._folder / f"{name}.key", "-out", fresh),
            ],
            what=f"make the certificate {name}",
            hint="It needs OpenSSL 3.",
        )
        fresh.rename(target)


def kubeconfig(folder: Path, name: str, server: str, cluster: str) -> str:
    """A kubeconfig for the identity ``name`` of ``folder``.

    Keys are embedded, so that the file can be copied on its own.
    """

    def embedded(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    lines = [
        "apiVersion: v1",
        "kind: Config",
        "clusters:",
        f"- name: {cluster}",
        "  cluster:",
        f"    server: {server}",
        f"    certificate-authority-data: {embedded('ca.crt')}",
        "users:",
        f"- name: {cluster}-{name}",
        "  user:",
        f"    client-certificate-data: {embedded(f'{name}.crt')}",
        f"    client-key-data: {embedded(f'{name}.key')}",
        "contexts:",
        f"- name: {cluster}",
        "  context:",
        f"    cluster: {cluster}",
        f"    user: {cluster}-{name}",
        f"current-context: {cluster}",
    ]
    return "\n".join(lines) + "\n"
