"""Frozen-feature evaluation of an exported model, in PyTorch; the protocol and the file layout are CuriaBench's."""
