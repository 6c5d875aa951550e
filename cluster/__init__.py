"""Where a scan runs: connecting to Ray and planning the actors."""
