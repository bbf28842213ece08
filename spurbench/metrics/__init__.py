"""Metrics: groups, Energy Pointing Game, cost, intervals."""
