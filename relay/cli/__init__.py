"""The command line: one module a command, each parses its flags, prints for people, and returns an exit code of `exits`.

Builds nothing by itself: what runs is put together by `supervisor`. Only here and in `tui` is anything printed.
"""
