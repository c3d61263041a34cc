"""Esper: neural networks that grow while they train."""
