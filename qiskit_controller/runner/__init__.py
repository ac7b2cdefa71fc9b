"""What runs inside a job's pod, one stage a container.

=================  ==========================================================================
``__main__``       the command ``qiskit-runner <stage>``
``source_stage``   stage ``source``, trusted container: fetches the code, runs none of it
``url_source``     the source ``url``
``git_source``     the source ``git``
``git_command``    runs git on a short leash
``git_credentials``  how git gets what a Secret holds
``http_fetch``     GET to checked addresses, redirects included
``addresses``      which network addresses may be talked to
``fetched``        where the code lies, for the other stages
``circuit_stage``  stage ``circuit``, untrusted container: watches over the user's code
``circuit_child``  the process that runs the user's code and writes the circuit
``supervisor``     listens while the executor works
``executor``       stage ``executor``, trusted container: validate, run, store, report
``assignment``     how the executor comes to its backend
``devices``        an account's devices; the command ``qiskit-runner probe``
``story``          what ``kubectl logs`` shows of the executor
``hostile``        reads files that the untrusted stage left
``hostile_qpy``    makes a circuit of bytes that the untrusted stage left
``metrics``        the numbers and the hash of a circuit
``rules``          what makes a circuit fit to run; used on both sides of the trust boundary
``results``        the result document
``formats``        the result document as json, csv, qpy or pickle
``storing``        checks beforehand, keeps the result in the record, stores it
``keeping``        the result in the record
``stores``         a ConfigMap, a volume, S3, Google Cloud Storage
``store_stage``    the executor of an attempt that stores what an earlier one kept
``cluster``        the two ConfigMaps that the executor may read and patch
``plan``           reads the plan
``tracing``        where the time of the trusted stages goes, as spans
``logs``           what libraries log in the trusted stages
``pod``            folders of the pod, limits of the container
=================  ==========================================================================

No module here imports ``kube`` or ``reconcilers``, and none but ``circuit_child`` runs, imports
or unpickles anything that a user wrote.
"""
