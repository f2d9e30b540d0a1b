"""Loss to trained state: mesh, step, optimizer, checkpoints, loop."""
