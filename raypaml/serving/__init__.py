"""A trained model for use: loaded, asked, exported."""
