"""Data: pairing files (`find`), reading them (`read`), batching them (`feed`), and synthetic crop fields (`made`)."""
