"""`lapa play`: a page where latent actions are the controls of what a model imagines."""
