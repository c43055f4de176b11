"""What a model's alignment rests on, matrix by matrix: Fisher factors, their eigenbases. Pure numbers."""
