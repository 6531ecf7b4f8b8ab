"""Recipes: one YAML per student size, each a whole distillation."""
