"""Between processes: bulk bytes through fixed slots of shared memory, everything else as small msgpack messages on a pipe.

Knows nothing of repos or protocols: slots have numbers, messages have a type. The supervisor owns the free lists; a child
only ever holds slots that it was given, and they come back when it ends, whatever it was doing.
"""
