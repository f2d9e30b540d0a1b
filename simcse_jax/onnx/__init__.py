"""The encoder as an ONNX graph, written without PyTorch."""
