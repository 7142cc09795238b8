"""From predictions to numbers: predict a split in parts, read parts back, and compute every measure of them."""
