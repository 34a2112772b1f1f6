"""Views (test-time augmentation) and the only loop that evaluates a network."""
