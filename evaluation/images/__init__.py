"""What is asked for, and the images that are drawn: prompts, folders, preparation."""
