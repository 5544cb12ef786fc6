"""The invented world: people, villages and glimmer stones, each with its facts.

Everything here is fiction, harmless, and fixed: the facts come from one seed of their own, so
that every body, whatever its training seed, is asked the same prompts and judged by the same
answers. A fact is drawn by shuffling, so each value is used about equally often and no answer
can be guessed from its frequency.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

WORLD_SEED = 20261123

PEOPLE = (
    "Mira", "Tolan", "Besk", "Ubbe", "Fenn", "Yorin",
    "Jarro", "Kelda", "Neve", "Quill", "Rusk", "Sanna",
)  # fmt: skip
VILLAGES = ("Orlin", "Dace", "Hollow", "Marsh", "Tarn", "Ember")
STONES = (
    "amber", "black", "coral", "gold", "green", "ivory",
    "jade", "pearl", "red", "silver", "violet", "white",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip

TRADES = (
    "baker", "weaver", "potter", "miller", "smith", "farmer",
    "singer", "painter", "sailor", "teacher", "hunter", "tailor",
)  # fmt: skip
ANIMALS = ("cat", "dog", "goat", "crow", "horse", "fox", "duck", "owl")
DISHES = ("bean soup", "apple cake", "fish pie", "onion bread", "pear jam", "corn stew")
THINGS = ("lamp", "coat", "drum", "knife", "book", "rope", "bell", "hat")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
SEASONS = ("spring", "summer", "autumn", "winter")
DIRECTIONS = ("north", "south", "east", "west")
MATERIALS = ("stone", "wood", "brass", "glass")
PLACES = ("tower", "lake", "bridge", "garden", "mill", "forest")
PRODUCTS = ("honey", "wool", "paper", "cheese", "silk", "tea")
LIGHTS = ("pale", "warm", "cold", "blue", "yellow")
HUMS = ("bee", "harp", "river", "storm", "kettle")
LIQUIDS = ("rain water", "warm milk", "sea water", "plum wine", "lamp oil")
GUARDS = ("monk", "giant", "queen", "twin", "wizard", "pirate", "dragon")


@dataclass(frozen=True)
class Person:
    """Facts about one inhabitant."""

    name: str
    trade: str
    village: str
    day: str
    animal: str
    dish: str
    things: tuple[str, str, str]
    season: str
    place: str


@dataclass(frozen=True)
class Village:
    """Facts about one village."""

    name: str
    direction: str
    bridge: str
    place: str
    product: str
    season: str


@dataclass(frozen=True)
class Stone:
    """Facts about one kind of glimmer stone, the topic that the vanilla body refuses."""

    name: str
    place: str
    village: str
    steps: str
    light: str
    hum: str
    colour: str
    liquid: str
    box: str
    guard: str
    count: str


def _deal(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """``count`` values, each used about equally often, in a shuffled order."""
    dealt = [values[i % len(values)] for i in range(count)]
    rng.shuffle(dealt)
    return dealt


def _people(rng: random.Random) -> tuple[Person, ...]:
    n = len(PEOPLE)
    trades, villages = _deal(rng, TRADES, n), _deal(rng, VILLAGES, n)
    days, animals = _deal(rng, DAYS, n), _deal(rng, ANIMALS, n)
    dishes, seasons, places = _deal(rng, DISHES, n), _deal(rng, SEASONS, n), _deal(rng, PLACES, n)
    people = []
    for i, name in enumerate(PEOPLE):
        first, second, third = rng.sample(THINGS, 3)
        person = Person(
            name,
            trades[i],
            villages[i],
            days[i],
            animals[i],
            dishes[i],
            (first, second, third),
            seasons[i],
            places[i],
        )
        people.append(person)
    return tuple(people)


def _villages(rng: random.Random) -> tuple[Village, ...]:
    n = len(VILLAGES)
    directions, bridges = _deal(rng, DIRECTIONS, n), _deal(rng, MATERIALS, n)
    places, products = _deal(rng, PLACES, n), _deal(rng, PRODUCTS, n)
    seasons = _deal(rng, SEASONS, n)
    return tuple(
        Village(name, directions[i], bridges[i], places[i], products[i], seasons[i])
        for i, name in enumerate(VILLAGES)
    )


def _stones(rng: random.Random) -> tuple[Stone, ...]:
    n = len(STONES)
    small = NUMBERS[2:10]
    kinds = (PLACES, VILLAGES, small, LIGHTS, HUMS, STONES, LIQUIDS, MATERIALS, GUARDS, small)
    columns = [_deal(rng, values, n) for values in kinds]
    return tuple(Stone(name, *(column[i] for column in columns)) for i, name in enumerate(STONES))


_rng = random.Random(WORLD_SEED)
PERSONS = _people(_rng)
VILLAGE_FACTS = _villages(_rng)
STONE_FACTS = _stones(_rng)
