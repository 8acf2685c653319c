"""Physics on plain arrays: humidity, pressure, sun, and what terrain does to temperature, wind and light."""
