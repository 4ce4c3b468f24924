"""What operators and their tools ask a running relay: metrics, health, status over HTTP; management over gRPC.

Answers from what it was given as callables: it owns its sockets and nothing else, changes no state, and no client, however
slow or hostile, makes another part of the relay wait. Called by supervisor.
"""
