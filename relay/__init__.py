"""The relay: every record of the wanted AT Protocol collections, past and future, pushed to your ingesters."""

__version__ = "0.1.0"
