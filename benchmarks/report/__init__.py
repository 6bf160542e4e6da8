"""Tables and plots of the results, for the documentation."""
