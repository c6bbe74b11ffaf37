"""Feature cache: teacher features computed once per data set and read during training."""
