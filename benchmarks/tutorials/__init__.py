"""The five tutorials, trained here and in their own frameworks: docs/tutorials.md."""
