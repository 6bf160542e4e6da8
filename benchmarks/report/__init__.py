"""Tables, plots and generated parts of README.md."""
