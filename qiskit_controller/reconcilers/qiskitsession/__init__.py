"""QiskitSessions.

``turns``       whose turn it is: a pure function
``decision``    when to open, look at and close a session, and what came of it: a pure function
``manifests``   the Kubernetes Jobs that do so
``reconciler``  the shell around them
"""
