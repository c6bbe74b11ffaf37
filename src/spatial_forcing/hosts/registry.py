"""Registry of host records of LeRobot's policies, by policy type.

Every module of this package that is not ``SUPPORT`` holds the records of one policy or of one family in a
tuple ``RECORDS``; other packages bring theirs by entry points of the group ``spatial_forcing.hosts``.
"""

from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.registry import Records

SUPPORT = (
    "building",
    "lerobot",
    "prompted",
    "record",
    "registry",
    "shown",
    "small",
    "tiny_normalizer",
    "tiny_policy",
)
RECORDS: Records[PolicyRecord] = Records(
    "host", PolicyRecord, key="type", package="spatial_forcing.hosts", support=SUPPORT
)
