"""Weather stations: reports of any origin in one form, and forecasts at the places of the reports."""

from xscalemixer.stations.points import at_stations, bring_to_stations
from xscalemixer.stations.reading import holds_stations, is_canonical, read, read_places, read_stations

__all__ = ["at_stations", "bring_to_stations", "holds_stations", "is_canonical", "read", "read_places", "read_stations"]
