"""How good probabilities are: scores, calibration, inputs unlike the training's, and the loss around a posterior."""
