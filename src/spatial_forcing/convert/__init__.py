"""Conversion of checkpoints between layouts: ``spatial-forcing convert``."""
