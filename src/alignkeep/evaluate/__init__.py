from alignkeep.rooms import open_room

open_room(__name__)
