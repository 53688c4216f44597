"""Several machines: an API that admits, nodes that run. Celery and Redis carry ids; the database says who runs what.

::

    API ── row and input are safe ── its turn at the desk ── a lease row: "sent" ──► Redis: the job's id
                                                                                       │
    node ◄── Celery agent ◄────────────────────────────────────────────────────────────┘
      claims it (attempt + 1, lease) ── the same Runs, Desk and Pool as on one box ── result to the shared media
      ── the row is finished, if the attempt is still the one it claimed

What Redis loses, nodes find in the database. What a node leaves behind, another takes over after the lease; the attempt is the
fencing number, so whoever comes back late changes nothing.
"""
