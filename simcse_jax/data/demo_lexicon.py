"""The words of the generated world: concepts, the forms that each may take, and where each hangs in its tree.

One line is one concept, `name < parent: form, form, ...`; all forms of one concept mean the same. The tables are plain
text so that a concept is added by typing one line; `lexicon()` reads them once, on first use. The file is long because
it is a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

# Nouns. `man/men` is an irregular plural, `soup*` has none. `@topic` of a root: what scenes with such things are about.
NOUNS = """
person @people: person/people, human being, individual
adult < person: adult, grown-up
man < adult: man/men, guy, gentleman/gentlemen
woman < adult: woman/women, lady
grandmother < adult: grandmother, grandma, granny
grandfather < adult: grandfather, grandpa, granddad
child < person: child/children, kid, youngster
boy < child: boy, lad, schoolboy
girl < child: girl, lass, schoolgirl
teenager < person: teenager, teen, adolescent
student < person: student, pupil
tourist < person: tourist, sightseer, holidaymaker
neighbor < person: neighbor, person from next door/people from next door
worker < person: worker, employee
chef < worker: chef, cook
waiter < worker: waiter, server
doctor < worker: doctor, physician
police_officer < worker: police officer, cop
farmer < worker: farmer, rancher
teacher < worker: teacher, instructor
builder < worker: builder, construction worker
soldier < worker: soldier, trooper
musician < worker: musician, instrumentalist
athlete < worker: athlete, sportsperson/sportspeople
animal @animals: animal, creature, beast
pet < animal: pet, domestic animal
dog < pet: dog, hound, canine
puppy < pet: puppy, pup
cat < pet: cat, feline
kitten < pet: kitten, baby cat
rabbit < pet: rabbit, bunny
farm_animal < animal: farm animal
horse < farm_animal: horse, steed
pony < farm_animal: pony
cow < farm_animal: cow, bovine
sheep < farm_animal: sheep/sheep
goat < farm_animal: goat, billy goat
pig < farm_animal: pig, hog
donkey < farm_animal: donkey, burro
wild_animal < animal: wild animal
monkey < wild_animal: monkey, primate
elephant < wild_animal: elephant
bear < wild_animal: bear, grizzly
fox < wild_animal: fox
deer < wild_animal: deer/deer
bird < animal: bird, feathered animal
duck < bird: duck
goose < bird: goose/geese
parrot < bird: parrot
crow < bird: crow, raven
food @food: food*, nourishment*
vegetable < food: vegetable, veggie
carrot < vegetable: carrot
onion < vegetable: onion
tomato < vegetable: tomato/tomatoes
potato < vegetable: potato/potatoes, spud
cucumber < vegetable: cucumber
fruit < food: fruit, piece of fruit/pieces of fruit
apple < fruit: apple
banana < fruit: banana
orange < fruit: orange, mandarin
lemon < fruit: lemon
peach < fruit: peach
dish < food: dish, meal
soup < dish: soup*, broth*
pasta < dish: pasta*, spaghetti*
rice < dish: rice*
stew < dish: stew*, goulash*
steak < dish: steak, piece of beef/pieces of beef
salad < dish: salad
hamburger < dish: hamburger, burger
sandwich < dish: sandwich
baked_good < food: baked good
cake < baked_good: cake, gateau
cookie < baked_good: cookie, biscuit
pizza < baked_good: pizza
bread < baked_good: bread*
pie < baked_good: pie, tart
drink @food: drink, beverage
coffee < drink: coffee*, espresso*
tea < drink: tea*
juice < drink: juice*
milk < drink: milk*
lemonade < drink: lemonade*
instrument @music: instrument, musical instrument
string_instrument < instrument: string instrument
guitar < string_instrument: guitar
violin < string_instrument: violin, fiddle
cello < string_instrument: cello
banjo < string_instrument: banjo
harp < string_instrument: harp
wind_instrument < instrument: wind instrument
flute < wind_instrument: flute
trumpet < wind_instrument: trumpet
saxophone < wind_instrument: saxophone, sax
piano < instrument: piano, pianoforte
drum < instrument: drum
accordion < instrument: accordion, squeezebox
music @music: music*
song < music: song, tune, melody
gear @sport: piece of sports equipment/pieces of sports equipment
ball < gear: ball
football < ball: football, soccer ball
basketball < ball: basketball
baseball < ball: baseball
tennis_ball < ball: tennis ball
frisbee < gear: frisbee, flying disc
racket < gear: racket
surfboard < gear: surfboard
skateboard < gear: skateboard
hockey_stick < gear: hockey stick
vehicle @travel: vehicle
motor_vehicle < vehicle: motor vehicle
car < motor_vehicle: car, automobile
truck < motor_vehicle: truck, lorry
van < motor_vehicle: van
bus < motor_vehicle: bus, coach
taxi < motor_vehicle: taxi, cab
motorcycle < vehicle: motorcycle, motorbike
bicycle < vehicle: bicycle, bike
scooter < vehicle: scooter
train < vehicle: train
boat < vehicle: boat
plane < vehicle: plane, airplane, aircraft/aircraft
luggage @travel: luggage*, baggage*
suitcase < luggage: suitcase, travel case
backpack < luggage: backpack, rucksack
map < luggage: map, street plan
document @office: document, piece of writing/pieces of writing
book < document: book
newspaper < document: newspaper, daily paper
letter < document: letter
report < document: report, written account
contract < document: contract, written agreement
email < document: email, electronic message
device @office: electronic device
laptop < device: laptop, notebook computer
phone < device: phone, telephone
printer < device: printer
camera < device: camera
furniture @home: furniture*
table < furniture: table
chair < furniture: chair, seat
sofa < furniture: sofa, couch
bed < furniture: bed
shelf < furniture: shelf/shelves
building_part @home: part of a house/parts of a house
window < building_part: window
door < building_part: door
wall < building_part: wall
fence < building_part: fence
kitchenware @home: piece of kitchenware/pieces of kitchenware
plate < kitchenware: plate
cup < kitchenware: cup, mug
pan < kitchenware: pan, skillet
bowl < kitchenware: bowl
clothing @shopping: clothing*, apparel*
shirt < clothing: shirt
dress < clothing: dress, gown
hat < clothing: hat
jacket < clothing: jacket, coat
shoe < clothing: shoe
scarf < clothing: scarf/scarves
"""

# Lists of nouns that several lines of ACTIONS and TRAITS mean.
GROUPS = """
portable: instrument gear document device luggage clothing kitchenware
goods: clothing food vehicle instrument device furniture gear
household: furniture building_part kitchenware
"""

# Actions: `name < parent: agents > objects; topic; codes; forms; converse forms`. Agents and objects are noun concepts,
# they and all below them. Topic `-` follows the object; `!home` wins over whatever takes part. Codes: manners s(peed)
# c(are) n(oise) that fit; o: may stand without object (first form); 1: one object only. `~form` has no passive;
# `_` marks where the object stands if not at the end. A converse form has the
# participants change places: a cat chases a mouse, a mouse flees from a cat.
ACTIONS = """
prepare: person > food; -; sc; prepare, make
chop < prepare: person > vegetable fruit; -; scn; chop, slice, cut up
peel < prepare: person > vegetable fruit; -; sc; peel, ~remove the peel of, ~strip the skin from
cook < prepare: person > dish vegetable; -; sco; cook, ~heat up
bake < prepare: person > baked_good; -; co; bake, make _ in the oven
serve: worker adult > food drink; -; sc; serve, dish out
consume: person > food; -; sn; ~have
eat < consume: person animal > food; -; sno; eat, consume, ~dine on
drink < consume: person > drink; -; sno; drink, sip, ~have a sip of
pour: person > drink; -; sc; pour, pour out
smell: person animal > food; -; c; smell, sniff
make_music: person > instrument; -; cn; ~make music with
play_instrument < make_music: person > instrument; -; scno; play, ~perform on
practice < make_music: person > instrument; -; sc; practice, ~take a lesson on, ~rehearse on
tune: person > string_instrument; -; c; tune, ~adjust the strings of
sing: person > song; -; sno; sing, perform
listen_to: person > song instrument; -; c; ~listen to, ~lend an ear to
write_song: person > song; -; s; compose, make up
perform: person >; music; n; give a concert, play for a crowd
dance: person >; music; sn; dance, move to the music
sing_choir < perform: person >; music; n; sing in a choir, perform with a chorus
kick < hit: person > ball; -; c; kick, ~give a kick to
hit: person > ball; -; c; hit, strike
throw: person > ball frisbee; -; c; throw, toss, hurl
catch: person dog > ball frisbee; -; c; catch, ~get hold of
bounce < hit: person > ball; -; sn; bounce, dribble
exercise: person >; sport; -; exercise, work out, do some training
run < exercise: person animal >; sport; sn; run, sprint, race along
swim < exercise: person dog duck >; sport; sn; swim, do some laps
jump < exercise: person animal >; sport; c; jump, leap, bounce into the air
ski < exercise: person >; sport; sc; ski, race down a snowy slope
surf < exercise: person >; sport; c; surf, ride the waves
climb < exercise: person >; sport; sc; climb a rock, scale a cliff
play_game: person >; sport; n; take part in a game, join a match
play_tennis < play_game: person >; sport; n; play tennis, hit balls over the net
play_football < play_game: person >; sport; n; play soccer, take part in a football match
play_basketball < play_game: person >; sport; n; play basketball, shoot hoops
drive: adult worker > motor_vehicle; -; sc1; drive, steer, ~sit at the wheel of
ride: person > bicycle motorcycle scooter horse donkey pony; -; sc1; ride, ~travel on
board: person > bus train plane boat taxi; -; s1; board, ~get on
leave: person > bus train plane boat taxi; -; s1; ~get off, ~step out of
wait_for: person > bus train taxi plane person; -; 1; ~wait for, ~stand waiting for, await
pack: person > suitcase backpack; -; sc; pack, fill
unpack: person > suitcase backpack; -; sc; unpack, empty
study_map: person > map; -; c; consult, ~find the way with
go_trip: person >; travel; -; travel around, go on a trip, make a journey
hitchhike < go_trip: person >; travel; -; hitchhike, thumb a ride
read: person > document; -; scno; read, ~look through
write: person > document; -; sco; write, draft, put together
sign: adult worker > document; -; sc; sign, ~put a signature on
send: person > document; -; s; send, mail out
receive: person > document; -; -; receive, ~get
use_device: person > device; -; c; use, operate, ~make use of
give_speech: adult worker student >; office; n; give a speech, deliver a talk
attend_meeting: adult worker >; office; -; attend a meeting, take part in a conference
phone_call: adult worker teenager >; office; n; talk on the phone, make a call
study: student child teenager >; office; cn; study, do homework, prepare for an exam
clean: person > household vehicle instrument device clothing; !home; sco; clean, make _ spotless, ~remove the dirt from
wash < clean: person > kitchenware vehicle clothing window; !home; sc; wash, rinse
wipe < clean: person > furniture kitchenware window instrument device; !home; sc; wipe, rub _ with a cloth
repair: person > furniture vehicle instrument device fence door; !home; sc; repair, fix, mend
break: person > furniture instrument device fence window kitchenware; -; -; break, smash, wreck
paint: person > furniture fence wall door bicycle boat; !home; sco; paint, ~put a coat of paint on
open: person > window door suitcase backpack letter; -; sc; open, open up
close: person > window door suitcase backpack; -; sc; close, shut
build: adult worker > furniture fence wall boat; !home; sc; build, construct, assemble
take_apart: adult worker > furniture fence instrument device bicycle; !home; sc; take apart, dismantle
housework: person >; home; sn; do housework, do the chores
sweep < housework: person >; home; s; sweep the floor, use a broom
laundry < housework: person >; home; s; do the laundry, hang out the washing
mow < housework: person >; home; s; mow the lawn, cut the grass
deal: person > goods document; !shopping; -; trade, ~make a deal over
buy < deal: person > goods book newspaper luggage; !shopping; s; buy, purchase, ~spend money on
sell < deal: person > goods book newspaper; !shopping; -; sell, ~find a buyer for
pay_for < deal: person > goods book; !shopping; -; ~pay for, ~hand over the money for
haggle < deal: person > goods luggage; !shopping; n; ~haggle over, ~bargain over, ~argue over the price of
try_on: person > clothing; -; s; try on, ~check the fit of
go_shopping: person >; shopping; s; shop, go shopping, visit some stores
queue < go_shopping: person >; shopping; -; stand in line at the checkout, queue to pay
feed: person > animal; -; c; feed, ~give food to; get food from
stroke: person > pet farm_animal; -; cs; stroke, caress
brush: person > pet farm_animal; -; sc; brush, groom, ~comb the hair of
train: person > dog puppy horse parrot; -; c; train, ~teach tricks to; learn tricks from
graze: farm_animal deer >; -; n; graze, eat grass, feed on a meadow
bark: dog puppy fox >; -; -; bark, make a lot of noise
fly: bird >; -; sn; fly, soar through the air
dig: dog puppy rabbit pig fox >; -; s; dig a hole, scratch in the earth
play_with: pet monkey > ball frisbee shoe; -; n; ~play with, ~have fun with
bite: dog puppy rabbit fox horse > shoe ball hat person; -; -; bite, ~sink some teeth into
fetch: dog puppy > ball frisbee shoe newspaper; -; s; fetch, bring back
chase: person animal > person animal; people; -; chase, run after, pursue; run away from, flee from
follow: person animal > person animal; people; sn; follow, ~walk behind; walk ahead of
watch: person animal > person animal vehicle; people; c; watch, observe, ~look at
scare: person animal > person animal; people; -; scare, frighten, startle
lick: pet farm_animal > person animal plate; people; -; lick, ~run a tongue over
hug: person > person pet; people; -; hug, embrace, ~put both arms around
greet: person > person; people; n; greet, ~say hello to, welcome
help: person > person; people; c; help, assist, ~lend a hand to; get help from
teach: person > person; people; c; teach, ~give a lesson to; learn from, take a lesson from
interview: person > person; people; c; interview, ~ask questions of; answer the questions of
push: person > person vehicle furniture; people; sc; push, shove
pull: person horse > person vehicle furniture; people; sc; pull, drag, tug
smile: person >; people; -; smile, beam with joy
laugh < smile: person >; people; n; laugh, giggle, burst into laughter
cry: person >; people; n; cry, weep, shed tears
rest: person animal >; people; -; rest, take a break
sleep < rest: person animal >; people; n; sleep, take a nap, doze
handle: person > portable food; -; sc; handle
carry < handle: person > portable food pet furniture; -; sc; carry, transport, ~walk along with
hold < handle: person > portable food pet drink; -; cn; hold, clutch, grip
pick_up < handle: person > portable food pet; -; sc; pick up, lift
put_down < handle: person > portable food pet; -; sc; put down, ~let go of
photograph: person > person animal vehicle food instrument building_part; people; sc; photograph, ~take a picture of
look_for: person > portable pet; -; sc; ~look for, ~search for, ~try to find
"""

OPPOSITES = """push pull, open close, throw catch, board leave, pack unpack, send receive, repair break,
build take_apart, buy sell, smile cry, laugh cry, pick_up put_down, feed scare, hug scare"""

# Traits: family (two of one family cannot both be true), what they fit, and their forms; `-noun` is
# an exception; `^form` stands behind its noun, with another form for many.
TRAITS = """
young < age: person -grandmother -grandfather: young, youthful
old < age: person -child -teenager -student: old, elderly, aged
happy < mood: person: happy, cheerful, joyful
sad < mood: person: sad, unhappy, gloomy
tall < height: person: tall, lanky
short < height: person: short, ^of short stature
dressed_red < shirt: person: ^in a red shirt/in red shirts, ^dressed in red
dressed_blue < shirt: person: ^in a blue shirt/in blue shirts, ^dressed in blue
dressed_black < shirt: person: ^in a black shirt/in black shirts, ^dressed in black
big < size: animal ball vehicle household luggage vegetable fruit -kitten -puppy: big, large, huge
small < size: animal ball vehicle household luggage vegetable fruit: small, little, tiny
red < color: vehicle clothing luggage ball furniture gear kitchenware: red, crimson
blue < color: vehicle clothing luggage ball furniture gear kitchenware: blue, azure
green < color: vehicle clothing luggage ball furniture gear: green, emerald
black < color: pet horse cow goat sheep vehicle clothing luggage furniture instrument: black, jet-black
white < color: pet horse cow goat sheep vehicle clothing kitchenware furniture: white, snow-white
brown < color: pet horse cow donkey bear clothing furniture: brown, chestnut
new < wear: vehicle device furniture instrument clothing gear luggage: new, brand-new
worn < wear: vehicle device furniture instrument clothing gear luggage book: worn, shabby, worn-out
"""

# Manners, two of each family: code in ACTIONS; forms that do not end in -ly stand at the end of their clause.
MANNERS = """
fast < speed: s: quickly, rapidly, at high speed, in a hurry
slow < speed: s: slowly, unhurriedly, at a slow pace, without any haste
careful < care: c: carefully, cautiously, with great care
careless < care: c: carelessly, without much care, without paying attention
quiet < noise: n: quietly, silently, without a sound
loud < noise: n: loudly, noisily, with a lot of noise
"""

PLACES = """
outdoors: outdoors, outside, in the open air
indoors: indoors, inside a building, under a roof
kitchen < indoors: in the kitchen, beside the stove
living_room < indoors: in the living room, in the lounge
garage < indoors: in the garage, in a workshop
office < indoors: in the office, at work
school < indoors: at school, in a classroom
library < indoors: in the library, between bookshelves
store < indoors: in a store, in a shop
mall < indoors: at the mall, in a shopping center
restaurant < indoors: in a restaurant, at a diner
cafe < indoors: in a cafe, in a coffee shop
gym < indoors: in the gym, at a fitness center
theater < indoors: in a theater, on stage
garden < outdoors: in the garden, in the backyard
park < outdoors: in the park, on a public green
street < outdoors: on the street, by the roadside
beach < outdoors: on the beach, at the seaside, by the ocean
forest < outdoors: in the forest, in the woods, among the trees
mountains < outdoors: in the mountains, high up in the hills
river < outdoors: by the river, on the bank of a stream
field < outdoors: in a field, on a meadow
farm < outdoors: on a farm, at a ranch
square < outdoors: in the town square, in the marketplace
station < outdoors: at the train station, on a railway platform
harbor < outdoors: at the harbor, on the docks
"""

# Where scenes of each topic happen. Places serve several topics, so that no place gives a topic away.
TOPIC_PLACES = """
animals: garden park street beach forest river field farm square
food: kitchen restaurant cafe garden park beach school square
music: theater living_room park street square cafe school beach restaurant
sport: gym park beach school street field garden mountains
travel: street station harbor square mountains beach river forest
office: office library cafe school living_room station park
home: kitchen living_room garage garden street school office farm restaurant
shopping: store mall square street harbor station farm
people: park street beach office school living_room square station cafe garden library kitchen
"""

# Where an action happens that does not fit everywhere.
ACTION_PLACES = """
ski: mountains forest
surf: beach harbor
swim: beach river harbor gym
climb: mountains beach river forest
mow: garden park field farm
cook: kitchen restaurant garden farm cafe
bake: kitchen restaurant farm cafe
play_tennis: gym park school
play_football: street park school field beach
play_basketball: street park school gym
drive: street square farm beach mountains station
ride: street park square farm beach mountains forest
board: street station harbor square
leave: street station harbor square
wait_for: street station harbor square school
push: street park square garage station school farm
pull: street park square garage station school farm
go_shopping: store mall square street
queue: store mall
attend_meeting: office school library restaurant
study: school library cafe living_room park
laundry: garden farm garage
graze: field farm forest river mountains
"""

TIMES = """
morning: in the morning, early in the day, before noon
night: at night, after dark, long after sunset
rain: on a rainy day, while it is raining, in wet weather
sun: on a sunny day, while the sun is shining, in bright sunshine
winter: in winter, during the cold season
summer: in summer, during the hot months
weekend: on the weekend, on a day off
"""


class Noun(NamedTuple):
    """Singular and plural form of each synonym; `mass` nouns have no plural."""

    forms: tuple[tuple[str, str], ...]
    mass: bool


class Action(NamedTuple):
    """Who may do it to what, and how it is said; see ACTIONS."""

    agents: tuple[str, ...]
    objects: tuple[str, ...]
    topic: str
    codes: str
    forms: tuple[str, ...]
    converse: tuple[str, ...]


class Trait(NamedTuple):
    """Its family, what it fits (noun concepts and all below them, or codes of ACTIONS), and how it is said."""

    family: str
    fits: tuple[str, ...]
    forms: tuple[str, ...]


class Tree:
    """The concepts of one table and what each is a kind of."""

    def __init__(self, parents: dict[str, str | None]):
        self.parents = parents
        self._above = {name: self._line(name) for name in parents}

    def _line(self, name: str) -> tuple[str, ...]:
        line = [name]
        while (parent := self.parents[line[-1]]) is not None:
            line.append(parent)
        return tuple(line)

    def above(self, name: str) -> tuple[str, ...]:
        """The concept itself, its parent, and so on up to the root."""
        return self._above[name]

    def is_a(self, name: str, kinds: tuple[str, ...]) -> bool:
        """Whether the concept is one of the kinds or lies below one."""
        return any(kind in kinds for kind in self._above[name])

    def distance(self, first: str, second: str) -> int | None:
        """Steps from the farther of the two up to what they have in common; None if they have nothing in common."""
        up, down = self._above[first], self._above[second]
        for step, name in enumerate(up):
            if name in down:
                return max(step, down.index(name))
        return None


class Lexicon(NamedTuple):
    """All tables, read."""

    nouns: dict[str, Noun]
    noun_tree: Tree
    leaves: tuple[str, ...]  # nouns with nothing below them
    topics: dict[str, str]  # root noun -> topic
    actions: dict[str, Action]
    action_tree: Tree
    traits: dict[str, Trait]
    manners: dict[str, Trait]
    places: dict[str, tuple[str, ...]]
    place_tree: Tree
    topic_places: dict[str, tuple[str, ...]]
    action_places: dict[str, tuple[str, ...]]
    times: dict[str, tuple[str, ...]]
    opposites: dict[str, tuple[str, ...]]


def _plural(singular: str) -> str:
    if singular.endswith(("s", "x", "ch", "sh")):
        return singular + "es"
    if singular.endswith("y") and singular[-2] not in "aeiou":
        return singular[:-1] + "ies"
    return singular + "s"


def _lines(table: str) -> Iterator[tuple[str, str | None, str]]:
    """Name, parent or None, and the rest of each line."""
    for line in table.strip().splitlines():
        head, rest = line.split(":", 1)
        name, _, parent = head.partition(" < ")
        yield name.strip(), parent.strip() or None, rest.strip()


def _kinds(text: str) -> tuple[str, ...]:
    """The noun concepts of a list, with GROUPS written out."""
    groups = {name: rest for name, _, rest in _lines(GROUPS)}
    return tuple(" ".join(groups.get(word, word) for word in text.split()).split())


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _read_nouns() -> tuple[dict[str, Noun], dict[str, str | None], dict[str, str]]:
    nouns, parents, topics = {}, {}, {}
    for head, parent, rest in _lines(NOUNS):
        name, _, topic = head.partition(" @")
        forms = []
        for form in _list(rest):
            singular, _, plural = form.rstrip("*").partition("/")
            forms.append((singular, plural or _plural(singular)))
        nouns[name], parents[name] = Noun(tuple(forms), "*" in rest), parent
        if topic:
            topics[name] = topic
    return nouns, parents, topics


def _read_actions() -> tuple[dict[str, Action], dict[str, str | None]]:
    actions, parents = {}, {}
    for name, parent, rest in _lines(ACTIONS):
        who, topic, codes, forms, *converse = (part.strip() for part in rest.split(";"))
        agents, _, objects = who.partition(">")
        actions[name] = Action(_kinds(agents), _kinds(objects), topic, codes, _list(forms), _list(*converse or [""]))
        parents[name] = parent
    return actions, parents


def _read_traits(table: str) -> dict[str, Trait]:
    traits = {}
    for name, family, rest in _lines(table):
        fits, forms = rest.split(":")
        traits[name] = Trait(family or name, _kinds(fits), _list(forms))
    return traits


@cache
def lexicon() -> Lexicon:
    """The tables of this file, read once."""
    nouns, noun_parents, topics = _read_nouns()
    actions, action_parents = _read_actions()
    opposites: dict[str, tuple[str, ...]] = {}
    for pair in _list(OPPOSITES.replace("\n", " ")):
        one, other = pair.split()
        opposites[one] = (*opposites.get(one, ()), other)
        opposites[other] = (*opposites.get(other, ()), one)
    inner = set(noun_parents.values())
    return Lexicon(
        nouns=nouns,
        noun_tree=Tree(noun_parents),
        leaves=tuple(name for name in nouns if name not in inner or name == "ball"),
        topics=topics,
        actions=actions,
        action_tree=Tree(action_parents),
        traits=_read_traits(TRAITS),
        manners=_read_traits(MANNERS),
        places={name: _list(rest) for name, _, rest in _lines(PLACES)},
        place_tree=Tree({name: parent for name, parent, _ in _lines(PLACES)}),
        topic_places={name: tuple(rest.split()) for name, _, rest in _lines(TOPIC_PLACES)},
        action_places={name: tuple(rest.split()) for name, _, rest in _lines(ACTION_PLACES)},
        times={name: _list(rest) for name, _, rest in _lines(TIMES)},
        opposites=opposites,
    )
