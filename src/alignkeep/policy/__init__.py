"""Policy: what a model must keep to ship, and a scorecard held against it. The gate decides by it, pages show it."""
