"""Images -> numbers: by published networks, or by packaged stand-ins."""
