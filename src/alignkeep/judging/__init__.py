"""What answers are judged and counted with: judges, statistics, metrics. Rooms share it and it imports none of them."""
