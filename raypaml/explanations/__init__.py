"""Class activation maps compared, image by image: figures, pictures, drift from a reference, and their page."""
