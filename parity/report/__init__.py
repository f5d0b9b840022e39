"""Answers and the report that shows them."""
