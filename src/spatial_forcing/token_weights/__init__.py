"""Weights of the tokens in the alignment loss: a teacher's confidence, or a mask of what matters.

``sources.py`` where they come from; they are stored beside the features of a cache.
"""
