"""Perturbation check of a host record: blank a patch of an image, and see which token changes."""

from spatial_forcing.check.arrangements import HostReport
from spatial_forcing.check.perturb import check_host

__all__ = ["HostReport", "check_host"]
