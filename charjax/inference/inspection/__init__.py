"""What the units of a model track along a text."""
