"""Who works: one instance at a time holds the lease over all partitions, with an epoch that every fenced write carries.

PostgreSQL is the only coordinator. Knows the store's lease row and session lock, and nothing of repos, streams or ingesters; says
what it holds and when it lost it, and leaves the consequences to the supervisor, which is its only caller.
"""
