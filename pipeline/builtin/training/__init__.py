"""How the built-in models were trained. Not part of the installed package."""
