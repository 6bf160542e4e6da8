"""The work of a GPU: driver, kernel launches, buffers and graphs. Never imports torch."""
