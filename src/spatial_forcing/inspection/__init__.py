"""What a checkpoint on disk is, and whether it would load, from headers and JSON alone: ``inspect``.

Start with ``inspect_path`` of ``look``.
"""
