"""One module a question; each has `run(settings) -> Answer`, and says at its head why its gates are what they are."""
