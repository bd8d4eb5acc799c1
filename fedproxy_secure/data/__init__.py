"""Records and tasks, from files, hubs and the synthetic world to token batches and accuracies."""
