"""One module a question; each has `run(*, seed=0)`, which returns the rows of the report that answer it."""
