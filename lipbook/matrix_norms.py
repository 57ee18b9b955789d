"""Chapter 2: the norms of a matrix, computed by definition or by decomposition.

Equations (7)–(10) of the article.
"""
