"""The labelling and admin pages and their REST API. A thin leaf above `feedback`: no torch, no training."""
