"""The phrase tables by language, English first, and how to tell a language that none of them covers."""

from __future__ import annotations

import re

from alignkeep.judging.phrases.asian import CHINESE, JAPANESE, KOREAN
from alignkeep.judging.phrases.english import ENGLISH
from alignkeep.judging.phrases.european import GERMAN, RUSSIAN
from alignkeep.judging.phrases.romance import FRENCH, ITALIAN, PORTUGUESE, SPANISH
from alignkeep.judging.phrases.table import Phrases, words

__all__ = ["LANGUAGES", "UNREAD_SCRIPT", "UNREAD_WORDS", "Phrases"]

LANGUAGES: tuple[Phrases, ...] = (
    ENGLISH, KOREAN, CHINESE, JAPANESE, SPANISH, FRENCH, GERMAN, ITALIAN, PORTUGUESE, RUSSIAN,
)  # fmt: skip

# Greek, Armenian, Hebrew, Arabic, the scripts of India, Thai, Lao, Georgian; a single letter is mathematics.
UNREAD_SCRIPT = re.compile(
    "[\u0370-\u03ff\u0530-\u058f\u0590-\u06ff\u0900-\u0dff\u0e00-\u0eff\u10a0-\u10ff]{2,}",
)
# Words of Dutch, Polish, Turkish, Vietnamese, Indonesian, Swedish and Czech that no covered language has.
UNREAD_WORDS = words(
    "het niet ik een jest nie mogę się dla przepraszam bir bu için değil üzgünüm yardımcı không tôi của được saya "
    "tidak dapat untuk yang maaf anda och jag att inte nemohu jsem není"
)
