"""deepsweep's scanner: from an archive of videos to rows of verdicts."""
