"""What runs inside a job's pod, one stage a container.

=================  ==========================================================================
``__main__``       the command ``qiskit-runner <stage>``
``circuit_stage``  stage ``circuit``, untrusted container: watches over the user's code
``circuit_child``  the process that runs the user's code and writes the circuit
``supervisor``     listens while the executor works
``executor``       stage ``executor``, trusted container: validate, run, store, report
``story``          what ``kubectl logs`` shows of the executor
``hostile``        reads files that the untrusted stage left
``hostile_qpy``    makes a circuit of bytes that the untrusted stage left
``rules``          what makes a circuit fit to run; used on both sides of the trust boundary
``results``        the result document
``formats``        the result document as json, csv, qpy or pickle
``stores``         puts the formatted result where it was asked for
``cluster``        the two ConfigMaps that the executor may read and patch
``plan``           reads the plan
``pod``            folders of the pod, limits of the container
=================  ==========================================================================

No module here imports ``kube`` or ``reconcilers``, and none but ``circuit_child`` runs, imports
or unpickles anything that a user wrote.
"""
