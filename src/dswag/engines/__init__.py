"""Where clients run: one engine per file."""
