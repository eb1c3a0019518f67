"""The schema, one numbered step after the other; `prefloop.feedback.database` runs them."""
