"""``local_simulator``: Qiskit Aer inside the job's own pod. Free, and needs no account."""
