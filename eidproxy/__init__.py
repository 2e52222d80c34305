"""eidproxy."""
