"""What the programs share: configs, devices, batches, training, evaluation, checkpoints, rendering."""
