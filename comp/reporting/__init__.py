"""Tables, comparisons, curves and pictures of what others measured."""
