"""ScoutAttention inside vLLM: a plugin, which `--additional-config '{"scout": {"budget": 2048}}'` turns on."""
