"""The QiskitJob reconciler: a functional core in an imperative shell.

- :mod:`.observed`: what is, as plain values;
- :mod:`.decision`: what should be, a pure function of what is and the clock;
- :mod:`.manifests`: the Kubernetes objects of a job, pure as well;
- :mod:`.reconciler`: reads, asks for the decision, writes the difference.

A crash may come between any two writes. That is safe because every decision is made anew
from what is there, every write is idempotent (names are deterministic, an object that exists
already and is ours counts as created), and the status, which remembers what was done, is
written last and only over the version that the decision was made from.
"""
