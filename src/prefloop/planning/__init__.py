"""What a recipe will cost before it runs: memory and time of each stage, and what to change where it does not fit.

`subject` is the model, `data` what it learns from, `work` what each stage does with both, `rates` what that takes
here or on another device, `prediction` the result and `advice` the way to one that fits.
"""
