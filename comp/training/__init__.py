"""One fold from start to finish."""
