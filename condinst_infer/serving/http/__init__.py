"""An HTTP server around one model: an image goes in, its instances come out."""
