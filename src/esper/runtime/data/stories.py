"""Procedural stories for small children: a small grammar of our own, so that language tasks need no download.

A story has a child, a thing it wants and a friend, and keeps to them: whoever guesses the next character has to
remember names, pronouns and what was lost where. Start with `story`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Generator

T = TypeVar("T")

CHILDREN = (
    *(("Mia", "she", "her"), ("Lily", "she", "her"), ("Nora", "she", "her"), ("Ada", "she", "her")),
    *(("Tom", "he", "his"), ("Ben", "he", "his"), ("Max", "he", "his"), ("Oscar", "he", "his")),
)
FRIENDS = ("a brown dog", "a small cat", "an old frog", "a wise owl", "a grey mouse", "a slow snail", "a shy fox")
THINGS = ("ball", "kite", "spoon", "hat", "drum", "boat", "lamp", "ring", "shell", "bell", "book", "cake")
COLOURS = ("red", "blue", "green", "yellow", "pink", "white")
PLACES = ("the garden", "the forest", "the big hill", "the river", "the old barn", "the beach", "the kitchen")
HIDING = ("under a tree", "behind a stone", "in a box", "on a shelf", "near the door", "in the tall grass")
MOODS = ("happy", "proud", "calm", "full of joy")
SORROWS = ("sad", "tired", "cross", "worried")
OPENINGS = (
    "Once upon a time there was a child named {name}.",
    "One day {name} woke up early.",
    "There once was a child who was called {name}.",
)
WISHES = (
    "{name} had a {colour} {thing} and loved it very much.",
    "{Pronoun} wanted to play with {own} {colour} {thing}.",
    "Every day {pronoun} took {own} {colour} {thing} to {place}.",
)
LOSSES = (
    "But the {thing} was gone, and {name} felt {sorrow}.",
    "At {place} the wind took the {thing} away. {Pronoun} was {sorrow}.",
    'Then {pronoun} could not find the {thing}. "Where is my {colour} {thing}?" asked {name}.',
)
MEETINGS = (
    'In {place} {pronoun} met {friend}. "Can you help me?" asked {name}.',
    'Soon {friend} came by. "I can help you," said {the_friend}.',
)
FINDS = (
    "Together they looked {hiding}, and there was the {colour} {thing}!",
    "{The_friend} looked {hiding} and found the {thing}.",
    '"Look {hiding}," said {the_friend}. And there it was, the {colour} {thing}.',
)
ENDINGS = (
    "{name} thanked {the_friend} and was {mood}.",
    "Now {name} and {the_friend} are friends, and both are {mood}.",
    "{Pronoun} went home with {own} {thing} and was {mood}.",
)
SCENES = (OPENINGS, WISHES, LOSSES, MEETINGS, FINDS, ENDINGS)
DETOURS = (
    "The sun was warm and the sky was blue.",
    "It began to rain, but {pronoun} did not mind.",
    "{name} sang a little song on the way.",
    "{Pronoun} looked everywhere, and then {pronoun} sat down to rest.",
)
DETOUR_IN = 3  # one scene in so many is followed by a detour


def story(generator: Generator) -> str:
    """One story of six to twelve sentences, about 400 characters."""

    def pick(options: Sequence[T]) -> T:
        return options[int(torch.randint(len(options), (), generator=generator))]

    name, pronoun, own = pick(CHILDREN)
    friend = pick(FRIENDS)
    the_friend = f"the {friend.split(' ', 1)[1]}"
    words = {
        "name": name,
        "pronoun": pronoun,
        "Pronoun": pronoun.capitalize(),
        "own": own,
        "friend": friend,
        "the_friend": the_friend,
        "The_friend": the_friend.capitalize(),
        "thing": pick(THINGS),
        "colour": pick(COLOURS),
        "place": pick(PLACES),
        "hiding": pick(HIDING),
        "mood": pick(MOODS),
        "sorrow": pick(SORROWS),
    }
    sentences = []
    for scene in SCENES:
        sentences.append(pick(scene))
        if pick(range(DETOUR_IN)) == 0:
            sentences.append(pick(DETOURS))
    return " ".join(sentence.format(**words) for sentence in sentences)


def stories(count: int, generator: Generator) -> list[str]:
    """So many stories, each by itself."""
    return [story(generator) for _ in range(count)]
