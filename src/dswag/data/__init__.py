"""Data sets, their examples and how they are spread over clients."""
