"""The words that retrieval prompts are made of, and endless prose of them."""

from random import Random


def _listed(text: str, separator: str = " ") -> list[str]:
    return text.split(separator)


ADJECTIVES = _listed(
    "amber brave calm clever crimson curious daring eager faint fearless gentle gleaming golden grave hidden hollow "
    "humble ivory jolly keen lively lonely lucky mellow mighty modest noble patient plain polite proud purple quick "
    "quiet rapid rusty scarlet sharp silent silver simple slender solemn solid sturdy subtle sunny swift tender tidy "
    "timid tiny velvet vivid wandering warm weary wild wise wooden"
)
NOUNS = _listed(
    "anchor apron arrow basket beacon bell blanket bottle bracelet bridge brush bucket button cabin camera candle "
    "canoe carpet castle chimney clock compass cradle curtain drum engine feather fiddle flute fountain garden hammer "
    "harbor helmet hinge kettle kite ladder lantern locket magnet mirror needle oven paddle parcel pencil pillow piano "
    "rocket saddle scarf shovel spoon statue telescope trumpet tunnel violin wagon whistle"
)
PEOPLE = _listed(
    "baker barber butcher carpenter clerk cook dancer doctor driver farmer fisher gardener guard hunter joiner judge "
    "keeper mason merchant miller nurse painter pilot plumber poet porter potter printer sailor scholar shepherd "
    "singer smith tailor teacher trader waiter weaver"
)
VERBS = _listed(
    "admired avoided called carried followed found greeted heard helped joined knew left liked met missed noticed paid "
    "praised reached remembered saw sought taught thanked trusted visited watched welcomed"
)
PLACES = _listed(
    "bay beach border canal cave cliff coast corner field forest gate hill inn island lake market meadow mill mountain "
    "orchard park path pond port river road shore square station street tower town valley village wall well"
)
TIMES = _listed(
    "after breakfast;after the rain;all afternoon;at dawn;at dusk;at night;before lunch;before sunset;every spring;"
    "for a while;in autumn;in summer;in the evening;in the morning;in winter;long ago;on Friday;on Monday;on Sunday;"
    "once a week;one day;the next day;this year;twice a month",
    ";",
)


def prose(seed: str, count: int) -> list[str]:
    """The first `count` words of an endless text of plain sentences, each of at most 15 words; the last may be cut."""
    random = Random(seed)
    words: list[str] = []
    while len(words) < count:
        words += _sentence(random).split()
    return words[:count]


def _sentence(random: Random) -> str:
    people, place, time = random.sample(PEOPLE, 2), random.choice(PLACES), random.choice(TIMES)
    verb, other = random.sample(VERBS, 2)
    return random.choice(
        (
            f"The {people[0]} {verb} the {people[1]} near the {place} {time}.",
            f"Near the {place}, the {people[0]} {verb} and {other} the {people[1]} {time}.",
            f"A {people[0]} from the {place} {verb} a {people[1]}.",
            f"{time[0].upper()}{time[1:]}, the {people[0]} {verb} the {place} and {other} the {people[1]}.",
            f"Nobody at the {place} {verb} the {people[0]} or the {people[1]} {time}.",
        )
    )
