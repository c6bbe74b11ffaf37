"""Scores of the spatial structure of teachers' features on a data set, to rank teachers before training."""
