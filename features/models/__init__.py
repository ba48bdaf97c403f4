"""The inputs and outputs of the user's two functions: `preprocessing_fn` and the model builder."""
