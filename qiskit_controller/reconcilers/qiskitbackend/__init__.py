"""QiskitBackends.

``decision``    when to probe, and what a probe's answer means: a pure function
``manifests``   the Kubernetes Job of a probe
``reconciler``  the shell around them
"""
