"""Algorithms 1 and 2 of the paper, with the server's update, schedules, calibration and regression."""
