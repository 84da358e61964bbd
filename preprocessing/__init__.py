"""Sources -> shards -> text embeddings. Nothing of the other packages is imported here; an encoder is an argument."""
