"""Measuring a defence: attack success, utility, and how sure the figures are."""
