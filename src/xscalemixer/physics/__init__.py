"""Physics on plain arrays: humidity, pressure, sun."""
