"""Loading and saving models, heads on top of them, and the passes that training and scoring make."""

from transformers.utils import logging

# prefloop shows its own progress; a bar for each of a run's many small loads would only hide it.
logging.disable_progress_bar()
