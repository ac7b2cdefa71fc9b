"""A real single-node Kubernetes cluster on one Debian machine, for development and tests.

There is no container engine on the machines this project is built on, so the
cluster is put together from parts: etcd, containerd, runc and the CNI plugins
are Debian's binary packages, the Kubernetes components are compiled once from
Debian's source package, and every process of one cluster runs in a network
namespace of its own. ``hack/cluster`` is the only way in; see its ``--help``.

Modules, each with one job:

``cache``       where downloads and builds live, and the locks around them
``proc``        running other programs, and saying well what failed
``apt``         Debian packages: installed, extracted, or as source
``kubernetes``  compiling the Kubernetes components and the pause program
``binaries``    which binaries a node needs and where each is found
``network``     the node's network namespace and its link to the host
``daemon``      long-running processes with pid files, ended by their own pid
``cgroups``     the cluster's own cgroup subtree (v1 and v2)
``pki``         keys and certificates
``components``  what each component of the node is told
``node``        one cluster: ``up``, ``down`` and what lies between
``images``      base image, builds and loading, all with buildah
``kind``        the same few operations where a container engine and kind exist
``cli``         the command line
"""
