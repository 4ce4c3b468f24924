"""Delivery against real gRPC servers that misbehave in every way we know of."""
