"""Public texts about real things, for calibration and healing of a real LLM, without any client's code.

A text says of places, animals, foods and trades of which kind they are and what is true of that kind, and
mixes in other common knowledge (sums, months, languages, tools). What it says of a kind holds for every
thing of that kind. Foods are named in the plural or without a number ("apples", "milk"), so sentences about
them use verbs that fit both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fedproxy_secure.runtime.randomness import stream
from fedproxy_secure.world.lexicon import Domain
from fedproxy_secure.world.real_things import CAPITALS, REAL_DOMAINS, with_article
from fedproxy_secure.world.stories import MONTHS, draw

# how sentences name a kind; kinds that are not listed go by their own name
_KIND_NAMES = {
    "mammal": "mammals",
    "bird": "birds",
    "insect": "insects",
    "vegetable": "vegetables",
    "dairy": "dairy products",
    "health": "health care",
    "building": "the building trade",
}
_WITH_ARTICLE = ("museum", "agency")  # "a sparrow", but "Lisbon" and "apples"
# x, y: two things of one kind; z: a thing of another kind; trait: of x and of its kind
_SENTENCES: Mapping[str, tuple[str, ...]] = {
    "freight": (
        "{x} lies in {kind}",
        "{x} and {y} are both in {kind}",
        "{x} is in {kind}, but {z} is in {other}",
        "whoever travels from {z} to {x} leaves {other} and arrives in {kind}",
        "maps of {kind} show {x} and {y}, but not {z}",
        "a tour of {kind} might begin in {x} and end in {y}",
        "people in {x} live in {kind}, and so do people in {y}",
        "goods from {x} are sold in {y} and elsewhere in {kind}",
        "neither {x} nor {y} lies in {other}",
        "to fly from {x} to {z} is to fly from {kind} to {other}",
        "newspapers in {x} report what happens in {y} and in the rest of {kind}",
        "someone from {x} has neighbours all over {kind} and visitors from {z}",
        "on which continent is {x}? The answer is {kind}",
        "{kind} is the continent of {x}, as {other} is that of {z}",
    ),
    "museum": (
        "{x} is one of the {kind}",
        "both {x} and {y} are counted among the {kind}",
        "{x} belongs to the {kind}, while {z} belongs to the {other}",
        "unlike {z}, {x} is to be found in a book on {kind}",
        "{x} {trait}",
        "like all {kind}, {x} {trait}",
        "like {y}, {x} {trait}",
        "since it is one of the {kind}, {x} {trait}",
        "what do we know of {x}? It {trait}",
        "{x} is not like {z}: it {trait}",
        "a student of {kind} may write about {x} or about {y}",
        "zoologists who study {kind} know how {x} and {y} differ",
        "to which class of animals does {x} belong? To the {kind}",
        "in a picture book {x} stands beside {y} among the {kind}",
        "it would be wrong to put {x} among the {other}, for it {trait}",
    ),
    "grocer": (
        "{x} can be found among the {kind} of any large shop",
        "whoever buys {x} and {y} has bought {kind}",
        "shops keep {x} with the {kind}, but {z} with the {other}",
        "a meal made of {x} and {z} has both {kind} and {other} in it",
        "the market had {x}, {y} and other {kind}",
        "somebody who eats no {kind} will not order {x}",
        "where should a shop put {x}? With the {kind}, next to {y}",
        "recipes that ask for {x} can often be made with {y} instead",
        "the cook looked for {kind} and chose {x} rather than {y}",
        "{x} will be listed under {kind}, and {z} under {other}",
        "{trait_with_x}",
        "{trait_with_x}, and the same goes for {y}",
        "the guests had {x} to eat, with some {z} on the side",
        "a shopping list that names {x}, {y} and {z} asks for {kind} twice and for {other} once",
    ),
    "agency": (
        "{x} works in {kind}",
        "{x} and {y} both work in {kind}",
        "{x} earns a living in {kind}, {z} in {other}",
        "whoever wants to become {x} has to learn a good deal about {kind}",
        "{x} {trait}",
        "{x}, like {y}, {trait}",
        "what does {x} do? Somebody with this trade {trait}",
        "the work of {x} is unlike that of {z}, because {x} {trait}",
        "in which field does {x} work? In {kind}",
        "a young person with a talent for {kind} may become {x} or {y}",
        "{x} who changes from {kind} to {other} might train as {z}",
        "people who hire {x} need help with {kind}, not with {other}",
    ),
}
_TRAITS: Mapping[str, tuple[str, ...]] = {
    "mammal": (
        "feeds its young with milk",
        "has warm blood",
        "breathes with lungs",
        "is born alive and cared for by its mother",
        "has a backbone and a large brain",
        "has hair on its skin",
    ),
    "bird": (
        "has feathers and a beak",
        "lays eggs with hard shells",
        "has two wings and two legs",
        "keeps its eggs warm until they hatch",
        "has no teeth",
        "has warm blood and grows new feathers from time to time",
    ),
    "fish": (
        "lives in water",
        "breathes through gills",
        "swims with its fins and its tail",
        "cannot live long on land",
        "takes oxygen from the water",
        "has neither arms nor legs",
    ),
    "insect": (
        "has six legs",
        "has a body in three parts",
        "has no bones, but a firm shell",
        "hatches from an egg",
        "has two feelers on its head",
        "breathes through tiny holes in its sides",
    ),
    "fruit": (
        "plants make {x} to spread their seeds",
        "a sweet salad can be made with {x}",
        "jam or juice can be made from {x}",
        "{x} can be eaten as a dessert",
    ),
    "vegetable": (
        "a gardener may sow or plant {x} in spring",
        "soup can be made with {x}",
        "{x} can be cooked and served as a side dish",
        "a farmer brings {x} from the field to the market",
    ),
    "dairy": (
        "a dairy sells {x}",
        "there would be no {x} without cows, goats or other animals that give milk",
        "{x} should be kept in a refrigerator",
        "a person who cannot digest milk may have to avoid {x}",
    ),
    "meat": (
        "a butcher sells {x}",
        "vegetarians do not eat {x}",
        "{x} can be prepared in a kitchen by frying or roasting",
        "{x} will spoil unless kept cold",
    ),
    "health": (
        "wants patients to get well",
        "may work at a hospital or in a practice",
        "has to keep hands and tools clean",
        "must know how a body works",
    ),
    "building": (
        "can be met on a building site",
        "helps to put up houses",
        "wears sturdy shoes and often a helmet",
        "reads plans and works to measure",
    ),
    "music": (
        "practises for the next concert",
        "makes music, alone or with others",
        "needs a good ear and a sense of rhythm",
        "hopes that the audience will clap",
    ),
    "science": (
        "asks questions and tests the answers",
        "publishes results in journals",
        "often works at a university",
        "writes down what was observed or measured",
    ),
}
_CAPITAL_SENTENCES = (
    "the capital of {a} is {b}",
    "{b} is the capital of {a}",
    "the government of {a} sits in {b}",
    "what is the capital of {a}? It is {b}",
    "an embassy in {a} will usually be in {b}, the capital",
)
_NUMBERS = (
    "{n} plus {m} is {sum}",
    "{n} times {m} is {product}",
    "if {n} people are in a room and {m} more come in, there are {sum}",
    "{m} boxes with {n} books each hold {product} books in all",
    "somebody who had {sum} coins and spent {m} has {n} left",
)
_MONTH_SENTENCES = (
    "{a} comes before {b}",
    "the month after {a} is {b}",
    "after the end of {a}, {b} begins",
)
# pairs of common knowledge, and the sentences that are true of every pair
_PAIRS = (
    (
        "dog=puppy, cat=kitten, cow=calf, horse=foal, goat=kid, lion=cub, pig=piglet, hen=chick, "
        "goose=gosling, owl=owlet, eagle=eaglet, swan=cygnet, deer=fawn, kangaroo=joey",
        (
            "a young {a} is called {a_b}",
            "the word for the young of the {a} is {b}",
            "{a_b} grows up to be {a_a}",
        ),
    ),
    (
        "France=French, Spain=Spanish, Italy=Italian, Germany=German, Portugal=Portuguese, Greece=Greek, "
        "Poland=Polish, Sweden=Swedish, Norway=Norwegian, Hungary=Hungarian, Japan=Japanese, "
        "China=Chinese, Thailand=Thai, Vietnam=Vietnamese, Brazil=Portuguese, Argentina=Spanish, "
        "Chile=Spanish, Cuba=Spanish, Egypt=Arabic, Morocco=Arabic, Iran=Persian, Uruguay=Spanish",
        (
            "many people in {a} speak {b}",
            "someone who moves to {a} does well to learn {b}",
            "street signs in {a} are in {b}",
        ),
    ),
    (
        "knife=cut, pen=write, broom=sweep, hammer=drive nails, needle=sew, spade=dig, kettle=boil water, "
        "oven=bake, key=open a lock, brush=paint, scale=weigh, thermometer=measure heat, "
        "telescope=look at stars, microscope=see tiny things, clock=tell the time, "
        "rope=tie things together",
        (
            "{a_a} is used to {b}",
            "whoever wants to {b} can take {a_a}",
            "with {a_a} it is easy to {b}",
            "what is {a_a} for? It helps to {b}",
        ),
    ),
    (
        "hot=cold, big=small, fast=slow, old=young, wet=dry, full=empty, light=dark, early=late, "
        "hard=soft, rich=poor, strong=weak, near=far, loud=quiet, cheap=expensive, long=short, clean=dirty",
        (
            "the opposite of {a} is {b}",
            "what is not {a} may be {b}",
            "{a} and {b} are opposites",
            "one may be {a} and the other {b}",
        ),
    ),
    (
        "bread=flour, windows=glass, tyres=rubber, books=paper, coins=metal, wine=grapes, cheese=milk, "
        "bricks=clay, jeans=cotton, ropes=fibres, furniture=wood, sweaters=wool, cider=apples, "
        "shoes=leather",
        (
            "{a} can be made of {b}",
            "{b} may be turned into {a}",
            "to make {a}, one can start from {b}",
            "without {b} there would be fewer {a} in the shops",
        ),
    ),
)


def real_texts(seed: int) -> Iterator[str]:
    """Yield an endless stream of public texts of four to seven sentences, the same for the same seed."""
    rng = stream(seed, "public texts about real things")
    while True:
        domain = REAL_DOMAINS[int(rng.integers(len(REAL_DOMAINS)))]
        sentences = [
            _about(domain, rng) if rng.random() < 0.75 else _common(rng)
            for _ in range(int(rng.integers(4, 8)))
        ]
        yield " ".join(f"{s[0].upper()}{s[1:]}." for s in sentences)


def _about(domain: Domain, rng: np.random.Generator) -> str:
    kind = int(rng.integers(4))
    other = int((kind + rng.integers(1, 4)) % 4)
    nouns = with_article if domain.name in _WITH_ARTICLE else str
    first, second = rng.choice(len(domain.things[kind]), size=2, replace=False)
    x, y = (nouns(domain.things[kind][i]) for i in (first, second))
    trait = draw(_TRAITS.get(domain.kinds[kind], ("",)), rng)
    return draw(_SENTENCES[domain.name], rng).format(
        x=x,
        y=y,
        z=nouns(draw(domain.things[other], rng)),
        kind=_KIND_NAMES.get(domain.kinds[kind], domain.kinds[kind]),
        other=_KIND_NAMES.get(domain.kinds[other], domain.kinds[other]),
        trait=trait,
        trait_with_x=trait.format(x=x),
    )


def _common(rng: np.random.Generator) -> str:
    topic = int(rng.integers(3 + len(_PAIRS)))
    if topic == 0:
        country = draw(tuple(CAPITALS), rng)
        return draw(_CAPITAL_SENTENCES, rng).format(a=country, b=CAPITALS[country])
    if topic == 1:
        n, m = (int(k) for k in rng.integers(2, 60, size=2))
        return draw(_NUMBERS, rng).format(n=n, m=m, sum=n + m, product=n * m)
    if topic == 2:
        month = int(rng.integers(11))
        return draw(_MONTH_SENTENCES, rng).format(a=MONTHS[month], b=MONTHS[month + 1])
    pairs, sentences = _PAIRS[topic - 3]
    a, b = draw(pairs.split(", "), rng).split("=")
    return draw(sentences, rng).format(a=a, b=b, a_a=with_article(a), a_b=with_article(b))
