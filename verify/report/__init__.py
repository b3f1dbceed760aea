"""Reports that people read: one HTML page, and a summary in Markdown."""
