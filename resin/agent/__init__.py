"""The agent: reads /proc and cgroups beside running jobs, buffers on disk, sends to the service."""
