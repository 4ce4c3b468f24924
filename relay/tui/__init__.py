"""The same status snapshot for people at a terminal: a live view, or one line every few seconds where there is no terminal.

`views` is pure; `live` owns the terminal while it runs and gives it back as it was. Knows no other part of the relay: it shows
what `observe.status` holds. Called by cli.
"""
