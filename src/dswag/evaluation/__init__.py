"""How good probabilities are: scores, calibration."""
