"""What crosses between server and clients: tasks and results, folds, one round trip, aggregation rules."""
