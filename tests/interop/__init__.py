"""Vectors and real repositories of others; the expected side never comes from our code."""
