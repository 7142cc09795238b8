"""A trained model in use: loaded, asked for the classes of pictures, exported to other programs."""
