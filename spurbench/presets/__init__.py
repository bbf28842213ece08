"""Recipes by name: small YAML files, one per published or proposed recipe."""
