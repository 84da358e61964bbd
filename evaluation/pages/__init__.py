"""Records -> what a page shows."""
