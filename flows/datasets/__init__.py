"""Data sets in this MDM_HOME: made, listed, cleared, and their captions' states."""
