"""Part of fusec."""
