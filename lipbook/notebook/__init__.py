"""What a page of the book needs: its run, the claims that it decides, its figures.

Needs the extra ``book``: ``pip install lipbook[book]``. Neither the core nor the laboratory
imports it.
"""
