"""The files of an Open Images release, read as streams and joined to one record per image."""
