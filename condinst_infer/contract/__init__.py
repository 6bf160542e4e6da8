"""The promises of a model file: metadata, tensor names and shapes, the Session protocol."""
