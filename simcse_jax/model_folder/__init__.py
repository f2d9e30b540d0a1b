"""A folder of any origin <-> our model: read, export, card, ONNX."""
