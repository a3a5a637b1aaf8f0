"""The built-in models: the scenes they know, their weights, their evaluation and the demo."""
