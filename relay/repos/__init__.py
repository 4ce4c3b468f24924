"""The life of a repo, and what is safe to forget: the states, the only writer of them, and when they are stored.

Knows the store's rows and nothing of HTTP, CARs or gRPC. The rooms above tell it what happened; it decides the state, stores
it (fenced by the lease's epoch), and tells back when it is stored.
"""
