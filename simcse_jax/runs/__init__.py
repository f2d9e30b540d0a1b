"""A run's folder, on a disk or in an object store: who may write in it, and the records that grow there."""
