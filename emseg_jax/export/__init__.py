"""A trained network in forms that run without this package."""
