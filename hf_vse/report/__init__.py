"""One HTML page that a person reads: the numbers of one or several models, their reasons, what they find and miss."""
