"""`python -m alignkeep`, so that `torchrun -m alignkeep` and `accelerate launch -m alignkeep` work."""

from alignkeep.cli import main

if __name__ == "__main__":
    main()
