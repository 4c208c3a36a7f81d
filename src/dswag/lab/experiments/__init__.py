"""Recipes, the paper's figures as plans, and what runs them."""
