"""How the book is made: the steps that the Snakefile names, and the doors that make opens.

``python -m workflow --help`` lists them. Nothing here knows what a chapter is about.
"""
