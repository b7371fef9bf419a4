"""Small modules of many architectures, as studies on modules that are not transformers' take them.

Each file is a faithful small version, in our own words, of what its paper describes, with a factory
``build`` whose keywords have tiny defaults. What it makes knows what it can be called with:
``example_inputs``, a mapping from ``forward``'s arguments to tensors of two rows.
"""
