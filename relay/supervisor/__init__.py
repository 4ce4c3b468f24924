"""The composition root: builds every part, plugs them together, starts them, replaces children, and stops along the flow.

Knows everybody; nobody but the command line knows it.
"""
