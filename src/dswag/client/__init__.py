"""What happens where the data are: a copy of the model, local SGD, BatchNorm statistics, evaluation."""
