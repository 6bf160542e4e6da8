"""A model's configuration: fields, validation, presets, paper tables, class names."""
