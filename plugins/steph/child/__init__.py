"""What runs outside the pytest process: the supervisor, the injected probe, the maker of twins."""
