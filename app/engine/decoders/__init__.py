"""Whisper's text decoder on a CPU: OpenVINO computes the steps, the search over them is here."""
