"""Whisper encoders beside CTranslate2's own: made from the same weights, faster on many CPUs, chosen by measurement."""
