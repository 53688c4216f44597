"""Uploads that may be cut off and go on later."""
