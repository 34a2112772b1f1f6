"""Faults: killed processes, failed writes, hostile files, mistakes."""
