"""Time, waiting and threads. Knows nothing of repos, networks or databases; everything above uses it."""
