"""Controlled comparisons: arms x seeds x data fractions of one LeRobot training command, all else equal.

arm.py         what the arms are: presets, an arms file
flags.py       the training command of an arm, from the one after ``--``
split.py       held-out episodes and data fractions
plan.py        everything that decides a comparison's result, its runs, its folder
preflight.py   every arm at its first step: checks that only the intended options differ
features.py    the teachers' features of the training episodes
run.py         one run: training and the evaluation of its checkpoints, in a process of its own
start.py       checksums of a run's initial weights and first batches
launch.py      runs side by side here, or through submitit
status.py      progress and remaining time
gather.py      results gathered from the files of a comparison
command.py     ``spatial-forcing compare``
"""
