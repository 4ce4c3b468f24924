"""What the outside sees of us: logs, metrics, status. Knows names and numbers, decides nothing; everybody may call it."""
