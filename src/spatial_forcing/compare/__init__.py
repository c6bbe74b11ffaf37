"""Comparisons: arms x seeds x data fractions of one LeRobot training command, equal in all but the arm.

arm.py         what the arms are: presets, an arms file
flags.py       the training command of an arm, from the one after ``--``
split.py       held-out episodes and data fractions
plan.py        everything that decides a comparison's result, its runs, its folder
preflight.py   every arm at its first step: nothing differs that should not, nothing looks wrong
features.py    the teachers' features of the training episodes
run.py         one run: training and the evaluation of its checkpoints, in a process of its own
start.py       what a run began with: weights, batches
launch.py      runs side by side here, or through submitit
status.py      how far it is
gather.py      what it left on disk, as results
command.py     ``spatial-forcing compare``
"""
