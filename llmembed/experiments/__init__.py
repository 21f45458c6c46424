"""Experiments: many trainings -> which is best, or a table like the paper's."""
