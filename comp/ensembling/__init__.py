"""Voting rules, selection, honest estimates, the submission."""
