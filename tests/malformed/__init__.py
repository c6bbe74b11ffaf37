"""Malformed inputs of every kind, to every command and to the Python API: ``python tests/malformed``.

Each must give one clear message (exit status 2, or an error of ours), no traceback, and leave everything on
disk as it was: nothing lost, nothing half-claimed.
"""
