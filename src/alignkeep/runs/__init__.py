"""How a stage is run: its folder, its record, and what is left where it fails."""
