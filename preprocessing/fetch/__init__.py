"""URLs -> bytes, safely and many at once."""
