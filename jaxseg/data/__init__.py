"""Data: pairing files (`find`), reading them (`read`), making batches (`feed`), and made-up fields (`made`)."""
