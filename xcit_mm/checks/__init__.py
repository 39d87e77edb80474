"""What can be known to be wrong before anything runs: the config, the data, the images."""
