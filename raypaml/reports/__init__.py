"""What several pages and displays share: HTML pieces, drawings, tables, progress and trackers."""
