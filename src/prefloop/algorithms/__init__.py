"""Pure mathematics: tensors in, tensors out. Imports torch and its own siblings, nothing else.

Legend of shapes, everywhere in prefloop: B sequences, R response tokens (padded), N real tokens of a batch
laid end to end, P pairs, K answers, V vocabulary, d width.

A loss function returns a vector over the things it counts (tokens or pairs) and a dict of statistics, each a
vector over the same things. The loop sums them and divides by the number of things in the whole optimiser step,
so that cutting a step into micro-batches changes nothing.
"""
