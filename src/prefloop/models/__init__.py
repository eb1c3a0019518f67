"""Loading and saving models, heads on top of them, and the passes that training and scoring make."""
