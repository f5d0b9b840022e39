"""The data doctor: what a data set is, what is wrong with it, and how to fix it."""
