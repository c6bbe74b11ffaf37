"""Teacher features computed once per data set and read during training."""
