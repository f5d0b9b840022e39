"""What every room uses: settings, command line, terminal, files and errors."""
