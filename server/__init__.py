"""Who asks and how: the HTTP dialects, the command line, metrics and health."""
