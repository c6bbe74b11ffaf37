"""Geometry in the robot's frame: calibrated cameras, and the 3D points that the tokens of a view show.

pinhole.py           cameras: projection and its inverse
cameras.py           where the cameras of a data set are: recorded.py, calibration.py
calibration_file.py  the file; columns.py what it names in the data set, matrices.py rotations and faults
check.py             `calibration check`: motion.py, matching.py what is measured; judgement.py, sheet.py
points.py            the points of tokens, from depth; metres.py depth in metres; stored.py beside a cache
points_command.py    `points`
"""
