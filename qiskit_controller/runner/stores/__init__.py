"""Put a formatted result where ``spec.output`` asks for it.

=================  ==========================================================================
``base``           the protocol, what can go wrong, and patience
``configmap``      a ConfigMap that the controller has made
``pvc``            a file in a mounted volume
``s3``             an object in any S3-compatible store, through boto3
``gcs``            an object in Google Cloud Storage, through google-cloud-storage
``credentials``    the mounted Secret; keeps its values out of every text
=================  ==========================================================================

One rule holds for all: what this QiskitJob, by its UID, did not write is never overwritten, and
what it did write is replaced as a whole or not at all.
"""

from __future__ import annotations

from qiskit_controller.api.outputs import BadLocation
from qiskit_controller.api.run import Plan, Reason
from qiskit_controller.runner.cluster import Cluster
from qiskit_controller.runner.pod import Paths
from qiskit_controller.runner.stores.base import Store, StoreFailed
from qiskit_controller.runner.stores.credentials import Credentials

__all__ = ["Store", "StoreFailed", "open_store"]


def open_store(plan: Plan, cluster: Cluster, paths: Paths) -> Store:
    """The store for ``spec.output``. Only what it needs is imported: SDKs take a second.

    Raises:
        StoreFailed: the location makes no sense.
    """
    output = plan.spec.output
    try:
        if output.type == "pvc":
            from qiskit_controller.runner.stores.pvc import VolumeStore

            return VolumeStore.of(plan, paths.storage)
        if output.type == "s3":
            from qiskit_controller.runner.stores.s3 import S3Store

            return S3Store.of(plan, Credentials.read(paths.credentials))
        if output.type == "gcs":
            from qiskit_controller.runner.stores.gcs import GcsStore

            return GcsStore.of(plan, Credentials.read(paths.credentials))
    except BadLocation as error:
        raise StoreFailed(Reason.INVALID_SPEC, str(error)) from None
    from qiskit_controller.runner.stores.configmap import ConfigMapStore

    return ConfigMapStore(cluster, plan.output_location, plan.job.uid)
