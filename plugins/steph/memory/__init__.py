"""Predicted GPU memory of a training run, corrected by what a record measured; `steph fit`."""
