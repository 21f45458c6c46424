"""Uncertainty: logits -> probabilities that one may act on. Knows no features and no labels but their indices."""
