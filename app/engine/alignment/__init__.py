"""Word times by forced alignment: the way of WhisperX (Bain et al. 2023, section 3.3) in vectorised form.

The emission model of the language (:mod:`.emissions`) says which characters are heard when, :mod:`.ctc` finds the best way of
the text through them, :mod:`.words` makes words and sentences of it. Results are those of ``whisperx.alignment.align``.
"""

from app.engine.alignment.aligner import Aligner as Aligner
