"""What a `runtime_env` needs before an actor can have it, and what its failures say."""
