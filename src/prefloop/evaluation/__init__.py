"""How good is it? Figures with intervals: win rates, reward-model quality, signs of over-optimisation."""
