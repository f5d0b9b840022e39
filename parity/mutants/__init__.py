"""Random mutants: small changes of jaxseg's source, which the tests and the questions should notice.

`changes` lists them, `reach` finds what runs a changed line, `hunt` tries them one by one.
"""
