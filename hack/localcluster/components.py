"""What each component of a node is told: its command line and configuration files.

Paths are those of the node's own mount namespace, where ``/run/node`` is the
cluster's state directory and ``/run/cache`` the cache. They are short, which
matters for the sockets, and the same in every cluster.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

from localcluster import network
from localcluster.network import API_SERVICE, GATEWAY, POD_RANGE, SERVICE_RANGE

# In the order in which they are started.
NAMES = (
    "etcd",
    "containerd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
)
STATE = "/run/node"
CACHE = "/run/cache"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "localhost/pause:local"
ENVIRONMENT = {
    "PATH": f"{STATE}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": f"{STATE}/home",
    "LC_ALL": "C.UTF-8",
}
_PKI = f"{STATE}/pki"
_GATES = "TTLAfterFinished=true"
# What the kubelet would set for the whole machine. The node sees files with these
# values in the place of the real ones, so the kubelet finds nothing to change.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def command(component: str, *, node: str) -> list[str]:
    """The command line of ``component`` on the node called ``node``.

    Raises KeyError for a component that does not exist.
    """
    arguments = {
        "etcd": _etcd,
        "containerd": _containerd,
        "kube-apiserver": _apiserver,
        "kube-controller-manager": _controller_manager,
        "kube-scheduler": _scheduler,
        "kube-proxy": _proxy,
        "kubelet": _kubelet,
    }[component](node)
    return [f"{STATE}/bin/{component}", *arguments]


def environment(component: str) -> dict[str, str]:
    """The complete environment of ``component``."""
    if component == "etcd" and platform.machine() == "aarch64":
        # etcd 3.4 wants to be told that this is meant.
        return {**ENVIRONMENT, "ETCD_UNSUPPORTED_ARCH": "arm64"}
    if component == "kubelet":
        # It would look for a cloud's metadata service before it starts.
        return {**ENVIRONMENT, "AWS_EC2_METADATA_DISABLED": "true"}
    return dict(ENVIRONMENT)


def write_configuration(state: Path, *, node: str, cgroup: str) -> None:
    """Write the components' configuration files below ``state``."""
    folder = state / "config"
    folder.mkdir(exist_ok=True)
    (folder / "containerd.toml").write_text(_CONTAINERD_TOML)
    (folder / "cni").mkdir(exist_ok=True)
    (folder / "cni" / "10-bridge.conflist").write_text(json.dumps(_CNI, indent=2))
    (folder / "kubelet.yaml").write_text(json.dumps(_kubelet_settings(cgroup), indent=2))
    (folder / "kube-proxy.yaml").write_text(json.dumps(_proxy_settings(node), indent=2))
    # There is no DNS server. Asking the pod's own loopback address is refused at
    # once, so a lookup fails in no time instead of after one.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")


def _etcd(_: str) -> list[str]:
    return [
        f"--data-dir={STATE}/etcd",
        # A development cluster's data is not worth waiting for the disk.
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
    ]


def _containerd(_: str) -> list[str]:
    return [f"--config={STATE}/config/containerd.toml"]


def _apiserver(_: str) -> list[str]:
    return [
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={GATEWAY}",  # where pods reach it
        "--bind-address=0.0.0.0",
        "--secure-port=6443",
        f"--tls-cert-file={_PKI}/apiserver.crt",
        f"--tls-private-key-file={_PKI}/apiserver.key",
        f"--client-ca-file={_PKI}/ca.crt",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={_PKI}/service-accounts.key",
        f"--service-account-key-file={_PKI}/service-accounts.pub",
        f"--kubelet-client-certificate={_PKI}/apiserver-kubelet.crt",
        f"--kubelet-client-key={_PKI}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={_PKI}/ca.crt",
        # The node's name resolves nowhere.
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        f"--feature-gates={_GATES}",
    ]


def _controller_manager(_: str) -> list[str]:
    return [
        f"--kubeconfig={_PKI}/controller-manager.conf",
        f"--authentication-kubeconfig={_PKI}/controller-manager.conf",
        f"--authorization-kubeconfig={_PKI}/controller-manager.conf",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={_PKI}/service-accounts.key",
        f"--root-ca-file={_PKI}/ca.crt",
        f"--cluster-signing-cert-file={_PKI}/ca.crt",
        f"--cluster-signing-key-file={_PKI}/ca.key",
        f"--feature-gates={_GATES}",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
    ]


def _scheduler(_: str) -> list[str]:
    return [
        f"--kubeconfig={_PKI}/scheduler.conf",
        f"--authentication-kubeconfig={_PKI}/scheduler.conf",
        f"--authorization-kubeconfig={_PKI}/scheduler.conf",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
    ]


def _proxy(_: str) -> list[str]:
    return [f"--config={STATE}/config/kube-proxy.yaml"]


def _kubelet(node: str) -> list[str]:
    return [
        f"--config={STATE}/config/kubelet.yaml",
        f"--kubeconfig={_PKI}/kubelet.conf",
        f"--hostname-override={node}",
        f"--node-ip={GATEWAY}",
        f"--root-dir={STATE}/kubelet",
        f"--cert-dir={STATE}/kubelet/pki",
        "--container-runtime=remote",
        f"--container-runtime-endpoint=unix://{CONTAINERD_SOCKET}",
    ]


def _kubelet_settings(cgroup: str) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{_PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{_PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{_PKI}/kubelet.key",
        "readOnlyPort": 0,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failSwapOn": False,
        "oomScoreAdj": 0,  # lowering it needs CAP_SYS_RESOURCE
        "clusterDomain": "cluster.local",
        "clusterDNS": ["127.0.0.1"],  # as in resolv.conf
        "resolvConf": f"{STATE}/config/resolv.conf",
        "volumePluginDir": f"{STATE}/kubelet/volume-plugins",
        # A full disk is the developer's business; pods are not to be evicted for it,
        # nor images removed that no registry could give back.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # A pod that fills its own volumes is noticed within seconds, not within a minute.
        "volumeStatsAggPeriod": "10s",
        # A fork bomb in a pod must not take the machine down.
        "podPidsLimit": 2048,
        # Ready soon after the start; written only on a change or every five minutes.
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "5m",
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "maxPods": 250,
    }


def _proxy_settings(node: str) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{_PKI}/kube-proxy.conf"},
        "hostnameOverride": node,
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "oomScoreAdj": 0,
        # Zero: leave the connection tracker's settings, the machine's own, alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


_CNI = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": network.BRIDGE,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": f"{STATE}/cni",
                "ranges": [[{"subnet": POD_RANGE, "gateway": GATEWAY}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}

_CONTAINERD_TOML = f"""\
version = 2
root = "{STATE}/containerd"
state = "/run/containerd/state"

[grpc]
  address = "{CONTAINERD_SOCKET}"

[debug]
  level = "warn"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE runc may not lower a score, and fails obscurely.
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{STATE}/bin/runc"
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{STATE}/cni-bin"
    conf_dir = "{STATE}/config/cni"
"""

# Addresses and names under which the API server is reached.
API_ADDRESSES = ("127.0.0.1", GATEWAY, API_SERVICE)
API_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
