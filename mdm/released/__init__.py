"""The authors' files: read, proven equal, turned into ours and into diffusers'."""
