"""What a model's alignment rests on, matrix by matrix: Fisher factors, their eigenbases, projectors. Pure numbers."""
