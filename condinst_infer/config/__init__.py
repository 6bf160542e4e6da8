"""A model's configuration: fields, validation, presets, the papers' tables, model zoo, class names."""
