"""A search over fields of a recipe: spaces, trials, what they share, what came out, and its page, all without Ray."""
