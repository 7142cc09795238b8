"""A generated Open Images release of any size with its truth, and every command run on it and measured."""
