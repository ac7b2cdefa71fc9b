"""The command line of ``hack/cluster``.

Results go to standard output, progress and errors to standard error. The exit
status is 0, 1 for a failure that has been explained, or 2 for a wrong command
line; ``exec-netns`` passes on that of its command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from localcluster import binaries, images, kind
from localcluster.network import GATEWAY
from localcluster.node import Cluster, all_names
from localcluster.proc import ClusterError, say

_EPILOG = """\
Where a container engine and kind are installed they are used, unless
QISKIT_CLUSTER_PROVIDER=debian says otherwise. The name may also be given in
QISKIT_CLUSTER. Everything downloaded or built is kept in QISKIT_CACHE, by
default ~/.cache/qiskit-controller; to remove it, take all clusters down first.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options) or 0
        sys.stdout.flush()
        return status
    except ClusterError as error:
        print(f"hack/cluster: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("hack/cluster: interrupted; run the same command again to go on", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hack/cluster",
        description="A real single-node Kubernetes cluster for development and tests.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str, *, named: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        if named:
            command.add_argument(
                "--name",
                default=os.environ.get("QISKIT_CLUSTER", "default"),
                help="the cluster's name (%(default)s)",
            )
        return command

    add("up", _up, "bring the cluster up, or whatever of it is missing, and wait for it")
    add("down", _down, "take the cluster down and leave nothing of it behind")
    add("status", _status, "show the cluster's parts; exit status 1 unless all of it works")
    add("kubeconfig", _kubeconfig, "print the path of the cluster's kubeconfig file")
    add("env", _env, 'print shell exports; use it as eval "$(hack/cluster env)"')
    load = add("load", _load, "copy an image from buildah's storage to the node, if it changed")
    load.add_argument("image", help="localhost/NAME:TAG, or the path of a docker-archive tar")
    for name, run in (("stop", _stop), ("start", _start)):
        command = add(name, run, f"{name} one component of the node, for example kubelet")
        command.add_argument("component")
    guest = add(
        "exec-netns",
        _exec_netns,
        "run a command in the node's network, where pods reach it at the gateway's address;"
        " it keeps this process's pid and is ended by down",
    )
    guest.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")

    add(
        "assets",
        _assets,
        "print a folder with etcd and kube-apiserver, as envtest wants it",
        named=False,
    )
    add(
        "base-image",
        _base_image,
        "make the Debian base image if needed and print its name",
        named=False,
    )
    build = add(
        "build", _build, "build an image of this repository and print its name", named=False
    )
    build.add_argument("target", choices=images.TARGETS)
    return parser


def _up(options: argparse.Namespace) -> None:
    if kind.chosen(options.name):
        kind.up(options.name)
    else:
        Cluster(options.name).up()
    binaries.kubectl()  # env would fetch it, silently as far as eval goes
    named = f" --name {options.name}" if options.name != "default" else ""
    say(f'use it: eval "$(hack/cluster env{named})" && kubectl get nodes')


def _down(options: argparse.Namespace) -> None:
    if kind.chosen(options.name):
        kind.down(options.name)
    else:
        Cluster(options.name).down()


def _status(options: argparse.Namespace) -> int:
    if kind.chosen(options.name):
        return 0 if kind.status(options.name) else 1
    cluster = Cluster(options.name)
    if not cluster.running:
        others = [name for name in all_names() if Cluster(name).running]
        print(f"cluster {options.name}: down")
        if others:
            print(f"up: {', '.join(others)}")
        return 1
    link = cluster.link
    ready = cluster.ready()
    states = cluster.states()
    print(f"cluster {options.name}: {'ready' if ready else 'not ready'}")
    print(f"  kubeconfig   {cluster.kubeconfig}")
    print(f"  logs         {cluster.logs}")
    print(f"  node         {link.inside} from the host, {GATEWAY} from pods")
    print(f"  host         {link.outside} from the node")
    for name, pid in states.items():
        print(f"  {name:<24} {f'pid {pid}' if pid else 'stopped'}")
    return 0 if ready and all(states.values()) else 1


def _kubeconfig(options: argparse.Namespace) -> None:
    print(_kubeconfig_of(options.name))


def _env(options: argparse.Namespace) -> None:
    exports = {"KUBECONFIG": str(_kubeconfig_of(options.name))}
    if not kind.chosen(options.name):
        exports["QISKIT_CLUSTER"] = options.name
        exports["QISKIT_NODE_ADDRESS"] = Cluster(options.name).link.inside
        exports["QISKIT_POD_GATEWAY"] = GATEWAY
    for key, value in exports.items():
        print(f"export {key}={shlex.quote(value)}")
    print(f'export PATH={shlex.quote(str(binaries.kubectl()))}:"$PATH"')


def _load(options: argparse.Namespace) -> None:
    if kind.chosen(options.name):
        kind.load(options.name, options.image)
    else:
        images.load(Cluster(options.name), options.image)


def _stop(options: argparse.Namespace) -> None:
    _debian(options).stop(options.component)


def _start(options: argparse.Namespace) -> None:
    _debian(options).start(options.component)


def _exec_netns(options: argparse.Namespace) -> None:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise ClusterError("could not run nothing\n  Say: hack/cluster exec-netns -- COMMAND")
    _debian(options).enter_network()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise ClusterError(f"could not run {command[0]}: {error.strerror}") from error


def _assets(_: argparse.Namespace) -> None:
    print(binaries.assets())


def _base_image(_: argparse.Namespace) -> None:
    print(images.base_image())


def _build(options: argparse.Namespace) -> None:
    print(images.build(options.target))


def _kubeconfig_of(name: str) -> str:
    if kind.chosen(name):
        return str(kind.kubeconfig(name))
    cluster = Cluster(name)
    _ = cluster.link  # says what to do when it is not up
    return str(cluster.kubeconfig)


def _debian(options: argparse.Namespace) -> Cluster:
    if kind.chosen(options.name):
        raise ClusterError(
            "could not reach into the node: this cluster is kind's\n"
            "  Set QISKIT_CLUSTER_PROVIDER=debian before up to have the other kind."
        )
    return Cluster(options.name)
