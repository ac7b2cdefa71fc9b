"""``ibm_quantum``: IBM's quantum computers, through Qiskit Runtime's sampler."""
