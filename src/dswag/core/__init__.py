"""Ground that every room stands on: flat parameters, seeds, threads, chunked passes, files, checked settings."""
