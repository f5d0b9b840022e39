"""Foundations of every room: settings, command line, terminal, files and errors."""
