"""A micro world of chat and the tiny models brought up in it."""

from alignkeep.rooms import open_room

open_room(__name__)
