"""How a run starts: what it needs, its parameters, embedded or deployed."""
