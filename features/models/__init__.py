"""What the user's two functions, `preprocessing_fn` and the model builder, take and give."""
