"""A run under a protocol: what is to be measured, and what a person is told of it."""
