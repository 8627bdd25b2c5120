"""What a run tells while it goes: files first."""
