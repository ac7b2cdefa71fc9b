"""``ibm_simulator``: one of IBM's devices, simulated by Qiskit Aer inside the job's own pod.

IBM retired its simulators in the cloud in 2024; this is what qiskit-ibm-runtime calls local
testing mode.
"""
