"""Where operations end up: one module a kind of sink, all behind `base.Sink`. A sink knows nothing of streams or gRPC.

Opened and used by the writer's thread alone, but for `prepare`, which the streams' threads call at the same time.
"""
