"""The conductor: sessions, stages, attempts; takes each stage through the rooms, one way. Sees all of them."""
