"""The last import of the server of children: what is there lives as long as the process, and is not gone through again
by every collection of garbage (a second each, and a copy of every page of memory in every child)."""

import gc

gc.freeze()
