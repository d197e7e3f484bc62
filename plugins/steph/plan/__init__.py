"""What will be run: profiles, pipeline descriptions, model shapes, ladders and command lines. Pure; runs nothing."""
