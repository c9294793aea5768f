"""The language of a text, by the script of its letters and a few frequent words."""

from __future__ import annotations

import re
from collections import Counter

_SCRIPTS = {
    "latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff", "greek": "\u0370-\u03ff", "cyrillic": "\u0400-\u04ff",
    "hebrew": "\u0590-\u05ff", "arabic": "\u0600-\u06ff", "devanagari": "\u0900-\u097f", "bengali": "\u0980-\u09ff",
    "gurmukhi": "\u0a00-\u0a7f", "gujarati": "\u0a80-\u0aff", "tamil": "\u0b80-\u0bff", "telugu": "\u0c00-\u0c7f",
    "kannada": "\u0c80-\u0cff", "malayalam": "\u0d00-\u0d7f", "thai": "\u0e00-\u0e7f", "kana": "\u3040-\u30ff",
    "han": "\u4e00-\u9fff", "hangul": "\uac00-\ud7af",
}  # fmt: skip
# Code -> script, and frequent words where several languages share the script.
LANGUAGES = {
    "en": ("latin", "the and of to is in that it for with are you this be was on as have not by"),
    "es": ("latin", "el la los las de que y en un una es por con para del se su como más no"),
    "pt": ("latin", "o os as de que e em um uma é por com para do da dos das não se mais seu ao"),
    "fr": ("latin", "le la les de des et en un une est que pour dans du qui sur pas avec au ce vous"),
    "de": ("latin", "der die das und ist nicht ein eine zu den mit von im auf für es sich auch wir dem"),
    "it": ("latin", "il lo gli di che e un una è per con del della non sono nel si come più le i"),
    "nl": ("latin", "de het een en van is dat niet op te zijn voor met die aan er ook wordt bij"),
    "sv": ("latin", "och att det som en ett är på för av med inte den till har jag om de kan var"),
    "fi": ("latin", "ja on ei se että oli hän joka ovat kun mutta myös tai niin minä olla sen voi"),
    "pl": ("latin", "i w na z się nie do to jest że jak o po co za od ale są przez dla"),
    "tr": ("latin", "ve bir bu için ile da de çok olarak gibi daha ne var değil olan en ama"),
    "vi": ("latin", "và là của có không cho một được trong người với các để những này đã tôi bạn"),
    "sw": ("latin", "na ya wa kwa ni katika la za hii kuwa cha si kama yake au hiyo huu watu wewe"),
    "id": ("latin", "dan yang di dengan untuk dari ini itu adalah tidak dalam ke pada saya akan kami"),
    "ru": ("cyrillic", "и в не на что с он как это по но из у за от для мы вы был или"),
    "uk": ("cyrillic", "і в не на що з він як це та але із у за від для ми ви був або є"),
    "bg": ("cyrillic", "и в не на че с той като това по но от за се да са ще или е си"),
    "ar": ("arabic", "في من على إلى أن هذا التي الذي لا ما هو هي مع كان عن أو ذلك"),
    "fa": ("arabic", "و در به از که این را با است برای آن یک می تا بر هم خود شما ما"),
    "ur": ("arabic", "کے کی میں ہے اور سے کا کو نے پر یہ ہیں ایک کہ بھی نہیں آپ جو"),
    "hi": ("devanagari", "के है में की और का को से पर यह हैं एक कि भी नहीं ने हम तो जो"),
    "mr": ("devanagari", "आणि आहे च्या या हा ही मध्ये नाही आहेत ते एक तर मी आम्ही साठी व की"),
    "ne": ("devanagari", "र छ को मा लाई छन् यो हो पनि भने गर्न तर म हुन् एक गरेको"),
    "el": ("greek", ""), "he": ("hebrew", ""), "bn": ("bengali", ""), "pa": ("gurmukhi", ""), "gu": ("gujarati", ""),
    "ta": ("tamil", ""), "te": ("telugu", ""), "kn": ("kannada", ""), "ml": ("malayalam", ""), "th": ("thai", ""),
    "ja": ("kana", ""), "zh": ("han", ""), "ko": ("hangul", ""),
}  # fmt: skip


def language_of(text: str) -> str | None:
    """The code of the language that a text is mostly written in; None if this can't tell.

    The script with the most letters decides; languages that share it are told apart by frequent words. It can't tell
    languages that are not listed (Catalan may pass for Spanish), a text of a few words, or a mixture.
    """
    text = text[:20_000]
    counts = {script: len(re.findall(f"[{letters}]", text)) for script, letters in _SCRIPTS.items()}
    if counts["kana"] * 10 > counts["han"]:  # Japanese mixes both, Chinese has no kana
        counts["kana"] += counts.pop("han")
    script = max(counts, key=lambda name: counts[name])
    if not counts[script]:
        return None
    found = {code: frequent.split() for code, (own, frequent) in LANGUAGES.items() if own == script}
    if len(found) == 1:
        return next(iter(found))
    words = Counter(re.findall(r"[^\s\d.,;:!?()\"*।،؟]+", text.lower()))
    hits = {code: sum(words[word] for word in frequent) for code, frequent in found.items()}
    first, second = sorted(hits, key=lambda code: -hits[code])[:2]
    return first if hits[first] > hits[second] else None
