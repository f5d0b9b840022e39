"""Made-up crop fields."""
