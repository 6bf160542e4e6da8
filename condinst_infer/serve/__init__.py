"""A small HTTP door to one model on one machine: an image goes in, its instances come out."""
