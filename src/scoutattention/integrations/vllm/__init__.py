"""ScoutAttention inside vLLM: a plugin, which `--additional-config '{"scout": {"budget": 2048}}'` turns on."""

NAME = "scout"
"""Of the plugin's settings in vLLM's `additional_config`."""
