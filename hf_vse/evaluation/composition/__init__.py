"""Foils, false captions to tell from the true one: exact, by rules or published, and the probe that asks them."""
