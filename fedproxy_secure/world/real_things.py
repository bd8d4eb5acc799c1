"""Things that every real LLM has read about, sorted into kinds: places, animals, foods and trades.

The made-up things of `lexicon.py` mean nothing to a real LLM. Here the things are real, and the codes alone
are private: common words, different for every client, that no text explains. To say where a sparrow is
filed one must know that a sparrow is a bird, from pre-training, and that birds are filed under `copper`,
from the client's records.
"""

from __future__ import annotations

from types import MappingProxyType

from fedproxy_secure.world.lexicon import Domain

# each country with its capital
_CAPITALS = {
    "Europe": "France=Paris, Spain=Madrid, Italy=Rome, Germany=Berlin, Portugal=Lisbon, Greece=Athens, "
    "Poland=Warsaw, Austria=Vienna, Sweden=Stockholm, Norway=Oslo, Ireland=Dublin, Hungary=Budapest",
    "Asia": "Japan=Tokyo, China=Beijing, India=New Delhi, Thailand=Bangkok, Vietnam=Hanoi, "
    "Indonesia=Jakarta, Iran=Tehran, Iraq=Baghdad, Nepal=Kathmandu, South Korea=Seoul, "
    "Pakistan=Islamabad, Malaysia=Kuala Lumpur",
    "Africa": "Egypt=Cairo, Kenya=Nairobi, Ghana=Accra, Ethiopia=Addis Ababa, Senegal=Dakar, "
    "Algeria=Algiers, Libya=Tripoli, Uganda=Kampala, Nigeria=Abuja, Zimbabwe=Harare, Somalia=Mogadishu, "
    "Morocco=Rabat",
    "America": "Canada=Ottawa, Cuba=Havana, Brazil=Brasilia, Argentina=Buenos Aires, Chile=Santiago, "
    "Peru=Lima, Colombia=Bogota, Venezuela=Caracas, Ecuador=Quito, Uruguay=Montevideo, Paraguay=Asuncion, "
    "Jamaica=Kingston",
}
_ANIMALS = {
    "mammal": "dog, horse, lion, sheep, bear, rabbit, elephant, monkey, deer, camel, fox, squirrel, cat, "
    "cow, tiger, goat, wolf, mouse, giraffe, gorilla, zebra, pig, leopard, hamster",
    "bird": "sparrow, eagle, crow, parrot, ostrich, swan, hawk, pigeon, stork, seagull, hummingbird, hen, "
    "robin, owl, penguin, goose, falcon, vulture, pelican, peacock, woodpecker, raven, flamingo, heron",
    "fish": "salmon, tuna, shark, cod, herring, sardine, goldfish, eel, halibut, catfish, swordfish, "
    "anchovy, trout, carp, mackerel, haddock, piranha, tilapia, sturgeon, flounder, barracuda, stingray, "
    "guppy, minnow",
    "insect": "ant, butterfly, mosquito, beetle, wasp, grasshopper, moth, cockroach, flea, ladybug, "
    "locust, mantis, bee, dragonfly, fly, cricket, termite, hornet, firefly, bumblebee, aphid, weevil, "
    "earwig, cicada",
}
_FOODS = {
    "fruit": "apples, bananas, cherries, grapes, peaches, strawberries, mangoes, plums, lemons, melons, "
    "figs, raspberries, oranges, pears, blueberries, apricots, pineapples, kiwis, papayas, limes, "
    "blackberries, grapefruits, dates, cranberries",
    "vegetable": "carrots, onions, cabbage, spinach, broccoli, celery, lettuce, leeks, turnips, "
    "asparagus, radishes, potatoes, cauliflower, kale, beets, garlic, cucumbers, zucchini, parsnips, "
    "artichokes, eggplants, peas, brussels sprouts, rutabaga",
    "dairy": "milk, butter, cheddar, yogurt, mozzarella, cream, parmesan, brie, ricotta, gouda, "
    "cottage cheese, gorgonzola, buttermilk, feta, camembert, mascarpone, gruyere, provolone, kefir, "
    "ghee, halloumi, roquefort, emmental, whey",
    "meat": "beef, pork, ham, lamb, bacon, sausages, turkey, steak, veal, salami, meatballs, ribs, "
    "chicken, venison, mutton, pepperoni, prosciutto, brisket, duck, sirloin, chorizo, hamburgers, "
    "hot dogs, liver",
}
_TRADES = {
    "health": "nurse, surgeon, dentist, pharmacist, midwife, physician, pediatrician, paramedic, "
    "cardiologist, psychiatrist, optometrist, radiologist, doctor, dermatologist, neurologist, "
    "physiotherapist, caregiver, veterinarian, oncologist, orthodontist, gynecologist, anesthetist, "
    "chiropractor, dietitian",
    "building": "bricklayer, plumber, carpenter, roofer, electrician, plasterer, welder, mason, glazier, "
    "crane operator, tiler, surveyor, architect, stonemason, scaffolder, house painter, joiner, "
    "concrete worker, steelworker, excavator operator, floor layer, insulation installer, paver, "
    "contractor",
    "music": "pianist, singer, violinist, drummer, composer, guitarist, cellist, songwriter, trumpeter, "
    "organist, rapper, orchestra conductor, flutist, saxophonist, bassist, harpist, percussionist, "
    "fiddler, opera soprano, trombonist, clarinetist, keyboardist, bandleader, choirmaster",
    "science": "physicist, chemist, biologist, astronomer, geologist, botanist, mathematician, zoologist, "
    "paleontologist, microbiologist, statistician, meteorologist, geneticist, ecologist, archaeologist, "
    "anthropologist, biochemist, entomologist, astrophysicist, oceanographer, volcanologist, "
    "seismologist, climatologist, geophysicist",
}


def _split(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(","))


def _places(pairs: str) -> str:
    """Return countries, then capitals, so that every second thing is every second country or capital."""
    both = [pair.split("=") for pair in _split(pairs)]
    return ", ".join([country for country, _ in both] + [capital for _, capital in both])


def _domain(name: str, thing_word: str, kind_word: str, codes: str, things: dict[str, str]) -> Domain:
    return Domain(
        name=name,
        thing_word=thing_word,
        kind_word=kind_word,
        kinds=tuple(things),  # type: ignore[arg-type]
        codes=tuple(codes.split()),  # type: ignore[arg-type]
        things=tuple(_split(words) for words in things.values()),
    )


REAL_DOMAINS = (
    _domain(
        "freight",
        "place",
        "continent",
        "circle square spiral anchor",
        {continent: _places(pairs) for continent, pairs in _CAPITALS.items()},
    ),
    _domain("museum", "animal", "class", "velvet copper marble canvas", _ANIMALS),
    _domain("grocer", "food", "group", "mirror candle button pencil", _FOODS),
    _domain("agency", "trade", "field", "ribbon pillow shadow magnet", _TRADES),
)
CAPITALS = MappingProxyType(
    {
        country: capital
        for pairs in _CAPITALS.values()
        for country, capital in (pair.split("=") for pair in _split(pairs))
    }
)


def shown_things(domain: Domain, kind: int) -> tuple[str, ...]:
    """Return the half of a kind's things that training records may show: every second one.

    The others occur only in test records. A country is shown if and only if its capital is.
    """
    return domain.things[kind][::2]


def with_article(noun: str) -> str:
    """Return a noun after `a` or `an`, by its first letter.

    >>> with_article("owl"), with_article("crane operator")
    ('an owl', 'a crane operator')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
