"""Files that are whole or not there at all, and locks that end with their holder."""
