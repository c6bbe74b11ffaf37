"""Geometry in the robot's frame: calibrated cameras, and the 3D points that the tokens of a view show.

pinhole.py      cameras: projection and its inverse
"""
