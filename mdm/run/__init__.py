"""The run folder: what a trainer is told, who owns the folder, its checkpoints, signals and hangs."""
