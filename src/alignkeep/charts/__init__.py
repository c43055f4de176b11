"""What rooms draw with: charts as SVG, words and numbers as they are printed, pages that stand alone."""
