"""The machinery of a Kubernetes controller; nothing in here knows of quantum jobs.

From the outside in: an informer (`informer`) caches one kind of object with the help of
a reflector (`reflector`), which lists and watches through the client (`client`). Its
handlers put keys into a work queue (`queue`, `ratelimit`), whose workers (`controller`)
reconcile them, say what they do in Events (`events`), and run in one replica at a time
(`leaderelection`). `health` answers the probes.
"""
