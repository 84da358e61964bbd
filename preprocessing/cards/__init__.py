"""A set's data card, for programs and for people."""
