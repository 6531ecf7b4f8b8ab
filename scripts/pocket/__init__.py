"""How the pocket pair (a tiny teacher and a tiny base) is made, from nothing, on one CPU."""
