"""The trainer: its loop, what a step changes, what it writes down, growing from stage to stage."""
