"""What will be run: profiles, model shapes and ladders. Pure; runs nothing."""
