"""What imagines: image tokenizers that are trained here, and models of how frames follow."""
