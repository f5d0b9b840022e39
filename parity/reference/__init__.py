"""What the article's PyTorch code does, written anew: the side that every check compares jaxseg with.

The behavior is the article's, oddities included; where it leaves something to chance or to the platform, the
docstring says what is fixed here. Nothing in this package imports JAX.
"""
