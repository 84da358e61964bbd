"""Where samples come from: lists, folders, tables, archives, other people's tars, and what comes with packages."""
