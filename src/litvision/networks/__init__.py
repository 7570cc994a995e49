"""Image classifiers in plain torch: pictures in, logits out; one network a file."""
