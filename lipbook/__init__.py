"""Lipschitz constraints in deep learning, as small tested functions.

The chapters of the book import from the modules; this file re-exports the public names.
"""
