"""The article's PyTorch code, written anew: the side that every check compares jaxseg with.

It behaves as the article does, oddities included. Where the article leaves something to chance or to the platform, a
docstring says what is fixed here. Nothing in this package imports JAX.
"""
