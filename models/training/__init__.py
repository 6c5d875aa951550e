"""Making the detector: pseudo-fakes, archive-like degradation, sampling, fitting and cross-validation."""
