"""Ablations: many ranks and seeds as one study, its table, its report, and the paper's Section 7."""
