"""Chooses an adapter by what is asked: a date, a review, a question. Answers by itself, without generating, when no skill
fits. The same as the Rust example of this name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tenon_sdk import Answer, Decision, Error, Plan, Policy, Request, Serve, catalog, chat, export_policy, log

TOKENS_DEFAULT = 48
WORDS_OF_A_DATE_MAX = 6
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
REVIEWED = ("review", "i bought", "i like", "i love", "i hate", "the movie", "the service")
# Compiled when the component is built, not in each request.
WORD = re.compile(r"[^\W_]+")
ASKING = ("what", "who", "why", "how", "where", "when", "give me", "tell me", "can you")


def is_date(text: str) -> bool:
    """A short text with a year or day in digits, and a month's name or number."""
    words = WORD.findall(text)
    has_month = any(word.startswith(MONTHS) for word in words)
    numbers = sum(word[0] in "0123456789" for word in words)
    return len(words) <= WORDS_OF_A_DATE_MAX and (has_month and numbers >= 1 or numbers >= 3)


def is_review(text: str) -> bool:
    """Says so, or sounds like one."""
    return any(sign in text for sign in REVIEWED)


def is_question(text: str) -> bool:
    """Ends or begins like one."""
    return text.endswith("?") or text.startswith(ASKING)


@dataclass(frozen=True)
class Skill:
    """An adapter, the prompt that it was trained with, and what it is for."""

    adapter: str
    system: str
    fits: Callable[[str], bool]


# The first that fits and is granted is taken.
SKILLS = (
    Skill("iso-date", "ISO date.", is_date),
    Skill("sentiment-json", "Sentiment as JSON.", is_review),
    Skill("all-caps", "Answer the question.", is_question),
)


def choose(text: str) -> Skill | None:
    """The skill for this text."""
    text = text.strip().lower()
    granted = {adapter.alias for adapter in catalog.adapters()}
    return next((skill for skill in SKILLS if skill.fits(text) and skill.adapter in granted), None)


@export_policy
class SkillRouter(Policy):
    """Routes by content."""

    def route(self, request: Request) -> Decision:
        """Serves what a skill fits."""
        if choose(request.text) is None:
            return Answer("No skill fits: send a date, a review or a question.")
        return Serve()

    def compose(self, request: Request) -> Plan:
        """The chosen adapter, asked as it was trained."""
        skill = choose(request.text)
        if skill is None:
            raise Error("no skill fits")
        log.info(f"chose {skill.adapter}")
        budget = TOKENS_DEFAULT if request.max_tokens is None else request.max_tokens
        return Plan(chat(skill.system, request.text), token_budget=budget).adapter(skill.adapter, 1.0)
