"""What makes a run survive: interruptions, full disks, bad images, losses that are NaN or infinite."""
