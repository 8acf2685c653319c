"""xscalemixer: hourly regional weather forecasts from any dataset, by a global and a regional network that talk to each other."""
