"""Building and running: from a config to a runner, its optimizer, schedule and screen."""
